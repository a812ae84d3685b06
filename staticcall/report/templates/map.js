// The map of cache lines: what stands at a place is taken from the row of that site.
const PITCH = 8;
const GUTTER = 5;
const SVG = "http://www.w3.org/2000/svg";

class LineMap {
  constructor(map, table) {
    this.map = map;
    this.table = table;
    this.items = [...table.items];
    this.labels = table.names;
    this.line = 0;
    this.pieces = [...map.querySelectorAll("svg")];
    this.sites = [];
    for (const svg of this.pieces) {
      const width = svg.viewBox.baseVal.width - 2 * GUTTER;
      this.line = width;
      const first = Number(svg.dataset.first);
      svg.dataset.places.split(" ").forEach((place, number) => {
        const [row, column, length] = place.split(".").map(Number);
        this.sites[first + number] = { svg, row, column, length };
      });
    }
    this.now = -1;
    this.tip = document.getElementById("tip");
    this.said = document.getElementById("said");
    map.setAttribute("role", "application");
    map.setAttribute("aria-roledescription", "map of sites");
    this.makeSearch();
    map.addEventListener("pointermove", (event) => this.point(event));
    map.addEventListener("pointerdown", (event) => this.point(event));
    map.addEventListener("pointerleave", () => { if (document.activeElement !== map) this.leave(); });
    map.addEventListener("keydown", (event) => this.key(event));
    map.addEventListener("focus", () => { if (map.matches(":focus-visible")) this.choose(Math.max(this.now, 0), true); });
    map.addEventListener("blur", () => this.leave());
    map.addEventListener("scroll", () => this.follow(), { passive: true });
    addEventListener("scroll", () => this.follow(), { passive: true });
  }

  makeSearch() {
    const search = element("input", { type: "search", placeholder: "Highlight key, function, reason", ariaLabel: "Highlight in the map", spellcheck: false });
    const status = element("p", { className: "count", role: "status" });
    search.addEventListener("input", () => {
      const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const all = wanted.length ? [...this.sites.keys()] : [];
      const count = this.highlight(all.filter((site) => this.table.has(this.items[site], wanted)));
      this.map.classList.toggle("dim", wanted.length > 0);
      status.textContent = wanted.length ? `${grouped(count)} of ${grouped(this.sites.length)} sites` : "";
    });
    this.map.before(element("div", { className: "tools" }, search, status));
  }

  highlight(found) {
    for (const path of this.map.querySelectorAll("path.found")) path.remove();
    const shapes = new Map();
    for (const number of found) {
      const { svg } = this.sites[number];
      shapes.set(svg, (shapes.get(svg) || "") + this.outline(number));
    }
    for (const [svg, shape] of shapes) this.draw(svg, "found", shape);
    const [first] = found;
    if (first !== undefined) this.reveal(this.sites[first]);
    return found.length;
  }

  outline(number) {
    let { row, column, length } = this.sites[number];
    let shape = "";
    for (; length > 0; row += 1, column = 0) {
      const part = Math.min(length, this.line - column);
      shape += `M${column + GUTTER} ${row * PITCH}h${part}v7h-${part}z`;
      length -= part;
    }
    return shape;
  }

  draw(svg, name, shape) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    path.setAttribute("d", shape);
    svg.append(path);
    return path;
  }

  // What is said of a site: its row, with the names of its columns.
  text(number) {
    const texts = this.table.texts(this.items[number]);
    return this.labels.map((label, column) => [label, texts[column]]).filter(([, value]) => value);
  }

  choose(number, loud) {
    if (number < 0 || number >= this.sites.length) return;
    this.now = number;
    const site = this.sites[number];
    this.mark?.remove();
    this.mark = this.draw(site.svg, "chosen", this.outline(number));
    const told = this.text(number);
    this.tip.replaceChildren(
      element("dl", {}, ...told.map(([label, value]) => element("div", {}, element("dt", {}, label), element("dd", {}, value)))),
    );
    if (loud) {
      this.reveal(site);
      this.said.textContent = told.map(([label, value]) => `${label} ${value}`).join(", ");
    }
    this.placeTip(site);
  }

  reveal(site) {
    const box = site.svg.getBoundingClientRect();
    const frame = this.map.getBoundingClientRect();
    const top = box.top + site.row * PITCH;
    if (top < frame.top + 30) this.map.scrollTop -= frame.top + 60 - top;
    else if (top > frame.bottom - 30) this.map.scrollTop += top - frame.bottom + 60;
  }

  placeTip(site) {
    const box = site.svg.getBoundingClientRect();
    this.tip.hidden = false;
    const { offsetWidth, offsetHeight } = this.tip;
    const x = box.left + ((site.column + GUTTER) / (this.line + 2 * GUTTER)) * box.width;
    const y = box.top + (site.row + 1) * PITCH + 8;
    const under = y + offsetHeight < innerHeight - 8;
    this.tip.style.left = `${Math.max(8, Math.min(x, innerWidth - offsetWidth - 8))}px`;
    this.tip.style.top = `${under ? y : Math.max(8, y - offsetHeight - PITCH - 16)}px`;
  }

  // What was chosen by a key keeps its text where it goes; a pointer points at something else now.
  follow() {
    if (document.activeElement === this.map && this.now >= 0 && !this.tip.hidden) this.placeTip(this.sites[this.now]);
    else this.tip.hidden = true;
  }

  leave() {
    this.tip.hidden = true;
    this.mark?.remove();
  }

  point(event) {
    const svg = event.target.closest("svg");
    if (!svg || !this.map.contains(svg)) return;
    const box = svg.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top) / PITCH);
    const column = ((event.clientX - box.left) / box.width) * (this.line + 2 * GUTTER) - GUTTER;
    const found = this.at(svg, row, column);
    if (found >= 0) this.choose(found, false);
  }

  // The site at a place, or one next to it: fingers are wider than five bytes.
  at(svg, row, column) {
    const first = Number(svg.dataset.first);
    let best = -1;
    let least = 6;
    for (let number = first; number < this.sites.length && this.sites[number].svg === svg; number += 1) {
      const site = this.sites[number];
      for (const [its, from, to] of [[site.row, site.column, site.column + site.length], [site.row + 1, 0, site.column + site.length - this.line]]) {
        if (its !== row || to <= from) continue;
        const far = column < from ? from - column : Math.max(column - to, 0);
        if (far < least) { least = far; best = number; }
      }
    }
    return best;
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const last = this.sites.length - 1;
    const crossing = (number) => this.table.texts(this.items[number])[this.labels.indexOf("Crosses")] === "yes";
    const next = () => { for (let n = this.now + 1; n <= last; n += 1) if (crossing(n)) return n; return this.now; };
    const moves = {
      ArrowRight: () => this.now + 1,
      ArrowLeft: () => Math.max(this.now - 1, 0),
      ArrowDown: () => this.below(1),
      ArrowUp: () => this.below(-1),
      Home: () => 0,
      End: () => last,
      n: next,
      N: next,
    };
    if (event.key in moves) {
      event.preventDefault();
      this.choose(Math.min(moves[event.key](), last), true);
    } else if (event.key === "Enter" && this.now >= 0) {
      event.preventDefault();
      this.table.only(this.table.texts(this.items[this.now])[0]);
      this.leave();
      const region = this.table.table.closest(".scroll");
      region.scrollIntoView({ block: "center" });
      region.focus({ preventScroll: true });
    } else if (event.key === "Escape") this.leave();
  }

  // The first site in the line above or below.
  below(step) {
    const from = this.sites[this.now];
    let number = this.now;
    while (this.sites[number + step] && this.sites[number].svg === from.svg && this.sites[number].row === from.row) number += step;
    return number;
  }
}
