"use strict";
// The first number in a cell ("< -10", ".91 to .92", "95 %"), or its text.
const value = (cell) => {
  const number = cell.textContent.replace(/,/g, "").replace("−", "-").match(/-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?/i);
  return number ? Number(number[0]) : null;
};
const compare = (column, sign) => (one, other) => {
  const [a, b] = [one.cells[column], other.cells[column]];
  // Words that carry a number, as "2_post" does, are words where they name the row.
  const [x, y] = column === 0 && !/^[-\d.,]+$/.test(a.textContent) ? [null, null] : [value(a), value(b)];
  if (x === null && y === null) return sign * a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
  if (x === null || y === null) return (x === null) - (y === null);
  return sign * (x - y);
};
for (const table of document.querySelectorAll(":not(.numbers) > .msp-lens-table table")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent || "row";
    head.replaceChildren(button);
    head.scope = "col";
    button.addEventListener("click", () => {
      // Up, down, and back to the order of the forward pass.
      const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
      const order = next === undefined ? "ascending" : next;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      if (order) head.setAttribute("aria-sort", order);
      const sorted = order ? [...original].sort(compare(column, order === "ascending" ? 1 : -1)) : original;
      body.append(...sorted);
    });
  });
}
for (const picture of document.querySelectorAll(".picture")) {
  picture.addEventListener("click", () => {
    const enlarged = picture.classList.toggle("enlarged");
    picture.title = enlarged ? "Fit to the page" : "Enlarge";
  });
}
