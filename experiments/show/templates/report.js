"use strict";
// Every table carries its rows as JSON beside it: sorting, paging and the download read them from there.
const PAGE = 200;
const show = v => v === null ? "" : typeof v === "number" && !Number.isInteger(v) ? String(Number(v.toPrecision(4))) : String(v);
// A spreadsheet computes what begins with = + - @ (or a tab, or a line end): text gets an apostrophe before it.
const plain = v => typeof v === "string" && /^[=+\-@\t\r\n]/.test(v) && Number.isNaN(Number(v.trim() || "x")) ? `'${v}` : String(v);
const quote = v => v === null ? "" : /[",\n\r]/.test(plain(v)) ? `"${plain(v).replaceAll('"', '""')}"` : plain(v);
const compare = (a, b) => a === b ? 0 : a === null ? 1 : b === null ? -1
  : typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});

for (const box of document.querySelectorAll(".data")) {
  const data = JSON.parse(box.querySelector("script").textContent);
  const body = box.querySelector("tbody"), heads = [...box.querySelectorAll("thead th")];
  const more = box.querySelector(".more");
  let rows = data.rows, visible = body.rows.length;

  const draw = () => {
    body.replaceChildren(...rows.slice(0, visible).map(row => {
      const line = document.createElement("tr");
      data.places.forEach((place, k) => {
        const cell = line.insertCell();
        cell.className = heads[k].className;
        cell.textContent = show(row[place]);
      });
      return line;
    }));
    more.hidden = visible >= rows.length;
  };

  heads.forEach((head, k) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const place = data.places[k];
    rows = [...data.rows].sort((a, b) => {
      // empty cells stay at the end in both directions
      if (a[place] === null || b[place] === null) return compare(a[place], b[place]);
      return down ? compare(b[place], a[place]) : compare(a[place], b[place]);
    });
    draw();
  }));
  more.addEventListener("click", () => { visible += PAGE; draw(); });
  box.querySelector(".save").addEventListener("click", () => {
    const text = [data.columns, ...data.rows].map(row => row.map(quote).join(",")).join("\n") + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
    link.download = `${data.name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
