"use strict";
// Tables that sort, filter and turn pages. A table's rows are in the document; here they are taken out, and the few
// that are looked at are put back, so ten thousand cost no more than twenty-five.
document.documentElement.classList.add("js");

const element = (name, values = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(values)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
};
const grouped = (number) => number.toLocaleString("en-US");
const PAGES = [25, 100, 500];

class DataTable {
  constructor(table) {
    this.table = table;
    this.noun = table.dataset.noun;
    this.headers = [...table.tHead.rows[0].cells];
    this.names = this.headers.map((header) => header.textContent.trim());
    this.items = [...table.tBodies].flatMap((body) => Array.from(body.rows, (row) => ({ row })));
    this.shown = this.items;
    this.size = PAGES[0];
    this.page = 0;
    this.column = this.headers.findIndex((header) => header.hasAttribute("aria-sort"));
    this.down = this.column >= 0 && this.headers[this.column].getAttribute("aria-sort") === "descending";
    this.choices = new Map();
    this.body = table.tBodies[0] || table.createTBody();
    for (const body of [...table.tBodies].slice(1)) body.remove();
    this.headers.forEach((header, column) => this.makeButton(header, column));
    // On a phone a row is laid out as a card, which takes its meaning from a table in some browsers.
    table.setAttribute("role", "table");
    if (this.items.length > 5) this.makeTools();
    this.draw();
    this.ahead();
  }

  // The texts of an item's cells, read once: ten thousand rows have a hundred thousand cells.
  texts(item) {
    item.texts ??= Array.from(item.row.children, (cell) => cell.textContent.trim());
    return item.texts;
  }

  // A row's cells with a blank between them: a word must not match across two of them.
  has(item, words) {
    item.words ??= this.texts(item).join(" ").toLowerCase();
    return words.every((word) => item.words.includes(word));
  }

  // Texts are read while nobody waits for them.
  ahead(from = 0) {
    if (from >= this.items.length) return;
    const later = window.requestIdleCallback ?? setTimeout;
    later(() => {
      for (const item of this.items.slice(from, from + 500)) this.has(item, []);
      this.ahead(from + 500);
    });
  }

  makeButton(header, column) {
    const button = element("button", { type: "button" }, ...header.childNodes);
    button.addEventListener("click", () => this.sort(column, column === this.column ? !this.down : this.startsDown(column)));
    header.append(button);
    header.setAttribute("role", "columnheader");
  }

  startsDown(column) {
    return this.headers[column].dataset.sort === "number";
  }

  makeTools() {
    const bar = element("div", { className: "tools" });
    this.search = element("input", { type: "search", placeholder: `Filter ${this.noun}`, ariaLabel: `Filter ${this.noun}`, spellcheck: false });
    this.search.addEventListener("input", () => this.filter());
    bar.append(this.search);
    this.headers.forEach((header, column) => {
      if (!header.dataset.choices) return;
      const values = [...new Set(this.items.map((item) => this.texts(item)[column]))].sort();
      if (values.length < 2) return;
      const select = element("select", { ariaLabel: `Only this ${header.dataset.choices}` }, new Option(`any ${header.dataset.choices}`, ""));
      select.append(...values.map((value) => new Option(value, value)));
      select.addEventListener("change", () => this.filter());
      this.choices.set(column, select);
      bar.append(select);
    });
    // Headers are out of sight where rows are cards.
    this.order = element("select", { className: "order", ariaLabel: "Sort by" });
    this.names.forEach((name, column) => this.order.append(new Option(`sort by ${name.toLowerCase()}`, column)));
    this.order.value = Math.max(this.column, 0);
    this.order.addEventListener("change", () => this.sort(Number(this.order.value), this.startsDown(Number(this.order.value))));
    bar.append(this.order);
    this.status = element("p", { className: "count", role: "status" });
    const sizes = element("select", { ariaLabel: "Rows on a page" });
    sizes.append(...PAGES.map((size) => new Option(`${size} rows`, size)), new Option("all rows", 0));
    sizes.addEventListener("change", () => { this.size = Number(sizes.value) || Infinity; this.page = 0; this.draw(); });
    this.before = element("button", { type: "button", ariaLabel: `Page before of ${this.noun}` }, "‹");
    this.next = element("button", { type: "button", ariaLabel: `Next page of ${this.noun}` }, "›");
    this.before.addEventListener("click", () => { this.page -= 1; this.draw(); });
    this.next.addEventListener("click", () => { this.page += 1; this.draw(); });
    const place = this.table.closest(".scroll");
    const title = place.parentElement.querySelector("h2.title, h3");
    title.replaceWith(element("div", { className: "head" }, title.cloneNode(true), bar));
    place.after(element("div", { className: "tools pages" }, this.status, sizes, this.before, this.next));
  }

  value(item, column) {
    const text = this.texts(item)[column];
    const kind = this.headers[column].dataset.sort;
    if (kind === "number") return Number.parseFloat(text) || 0;
    if (kind === "address") return text.replace(/[0-9a-f]+$/, (digits) => digits.padStart(16, "0"));
    return text.toLowerCase();
  }

  sort(column, down) {
    const keyed = this.items.map((item, number) => ({ item, number, value: this.value(item, column) }));
    const sign = down ? -1 : 1;
    keyed.sort((one, other) => (one.value < other.value ? -sign : one.value > other.value ? sign : one.number - other.number));
    this.items = keyed.map(({ item }) => item);
    this.headers.forEach((header) => header.removeAttribute("aria-sort"));
    this.headers[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    this.column = column;
    this.down = down;
    if (this.order) this.order.value = column;
    this.filter();
  }

  filter() {
    if (!this.search) return this.draw();
    const wanted = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const choices = [...this.choices].filter(([, select]) => select.value);
    this.shown = this.items.filter(
      (item) => this.has(item, wanted) && choices.every(([column, select]) => this.texts(item)[column] === select.value),
    );
    this.page = 0;
    this.draw();
  }

  draw() {
    if (!this.search) this.shown = this.items;
    const pages = Math.max(Math.ceil(this.shown.length / this.size), 1);
    this.page = Math.min(Math.max(this.page, 0), pages - 1);
    const from = this.page === 0 ? 0 : this.page * this.size;
    const part = this.shown.slice(from, from + this.size).map(({ row }) => row);
    for (const row of part) {
      row.setAttribute("role", "row");
      for (const cell of row.cells) cell.setAttribute("role", cell.tagName === "TH" ? "rowheader" : "cell");
    }
    this.body.replaceChildren(...part);
    if (!this.status) return;
    const found = this.items.length === this.shown.length ? "" : ` found among ${grouped(this.items.length)}`;
    this.status.textContent = part.length
      ? `${grouped(from + 1)} to ${grouped(from + part.length)} of ${grouped(this.shown.length)}${found} ${this.noun}`
      : `none of ${grouped(this.items.length)} ${this.noun}`;
    this.before.disabled = this.page === 0;
    this.next.disabled = this.page >= pages - 1;
  }

  // Show one row alone, whatever was filtered before.
  only(text) {
    for (const select of this.choices.values()) select.value = "";
    this.search.value = text;
    this.filter();
  }
}
