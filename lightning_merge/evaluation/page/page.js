"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("rows");
  const body = table.tBodies[0];
  const said = document.getElementById("said");
  const against = document.getElementById("against");
  const signed = (v) => ((v = Math.round(v * 10) / 10 + 0), (v < 0 ? "\u2212" : "+") + Math.abs(v).toFixed(1));

  // Sorting: a second press turns the order round; rows without a value stay last.
  const key = (row, column) => {
    const cell = row.cells[column];
    if (column === 0) return cell.querySelector(".rowname").textContent;
    return cell.dataset.v === "" || cell.dataset.v === undefined ? null : Number(cell.dataset.v);
  };
  const sort = (heading) => {
    const up = heading.getAttribute("aria-sort") === "descending" ||
      (heading.cellIndex === 0 && heading.getAttribute("aria-sort") !== "ascending");
    for (const other of table.tHead.rows[0].cells) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const column = heading.cellIndex;
    const order = [...body.rows].sort((one, two) => {
      const a = key(one, column), b = key(two, column);
      if (a === null || b === null) return (a === null) - (b === null);
      return (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
    });
    body.append(...order);
    said.textContent = `Sorted by ${heading.innerText.replace(/[▲▼]/g, "").trim()}, ${up ? "ascending" : "descending"}.`;
  };
  for (const button of table.tHead.querySelectorAll("button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }

  // Differences from one row, computed beforehand for all pairs.
  const line = (kind, text) => {
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    return span;
  };
  const fill = (cell, found) => {
    cell.replaceChildren();
    if (!found || !found.length) return;
    const [points, low, high, p, verdict] = found;
    const word = verdict > 0 ? "better" : verdict < 0 ? "worse" : "";
    cell.append(line(`v ${word}`, signed(points)));
    if (p === undefined) return;
    cell.append(line("i", `[${signed(low)}, ${signed(high)}]`));
    cell.append(line(`p ${word}`, `${p < 0.001 ? "p<0.001" : `p ${p.toFixed(3)}`}${word ? ` ${word}` : ""}`));
  };
  const compare = (name) => {
    const pairs = data.pairs[data.rows.indexOf(name)];
    for (const row of body.rows) {
      const own = pairs[Number(row.dataset.i)];
      for (const cell of row.querySelectorAll("td.versus")) {
        fill(cell, own && own[data.compared.indexOf(cell.dataset.c)]);
      }
      row.classList.toggle("against", row.dataset.row === name);
      row.querySelector(".choose").setAttribute("aria-pressed", row.dataset.row === name);
    }
    for (const place of document.querySelectorAll(".ref")) place.textContent = name;
    against.value = name;
  };
  body.addEventListener("click", (event) => {
    const button = event.target.closest(".choose");
    if (!button) return;
    const name = button.closest("tr").dataset.row;
    compare(name);
    said.textContent = `All rows are compared with ${name}.`;
  });
  against.addEventListener("change", () => compare(against.value));
  compare(data.against);

  // The row that charts show.
  const follow = (name) => {
    for (const mark of document.querySelectorAll(".mark[data-row]")) {
      const on = mark.dataset.row === name;
      mark.classList.toggle("on", on);
      if (on) mark.parentNode.append(mark);
    }
  };
  for (const select of document.querySelectorAll(".follow")) {
    select.addEventListener("change", () => follow(select.value));
    if (select.value) follow(select.value);
  }

  // Light and dark: the reader's choice, else the system's.
  const theme = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => theme.setAttribute("aria-pressed", dark());
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();

  // Downloads.
  const offer = (id, kind, text) => {
    document.getElementById(id).href = URL.createObjectURL(new Blob([text], { type: kind }));
  };
  offer("json", "application/json", JSON.stringify(data.results, null, 1));
  offer("csv", "text/csv", data.csv);
})();
