// A file's tables are made when it is first looked at.
const prepare = (part) => {
  if (part.dataset.ready) return;
  part.dataset.ready = "yes";
  const tables = new Map([...part.querySelectorAll("table.data")].map((table) => [table, new DataTable(table)]));
  const map = part.querySelector(".map");
  const sites = part.querySelector("table.sites");
  if (map && sites) new LineMap(map, tables.get(sites));
};

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table.files").forEach((table) => new DataTable(table));
  for (const part of document.querySelectorAll(".image")) {
    if (part.tagName !== "DETAILS") prepare(part);
    else part.addEventListener("toggle", () => { if (part.open) prepare(part); });
  }
  // A link to a file opens it.
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    const part = target && target.closest("details.image");
    if (part && !part.open) { part.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);
  reveal();
});
