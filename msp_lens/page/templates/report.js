"use strict";
// Sorting: the first number in a cell ("< -10", ".91 to .92", "95 %"), or its text.
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

// The contents: a column beside the text, or a fold above it that closes once something was chosen.
const contents = document.querySelector(".contents details");
const isWide = matchMedia("(min-width: 75rem)");
const fit = () => { contents.open = isWide.matches; };
fit();
isWide.addEventListener("change", fit);
const links = [...document.querySelectorAll(".contents a")];
links.forEach((link) => link.addEventListener("click", () => { if (!isWide.matches) contents.open = false; }));
const targets = links.map((link) => document.getElementById(link.hash.slice(1)));
const mark = () => {
  // The last section that has begun; at the very end of the page, the last of all.
  const isAtEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
  const begun = targets.filter((target) => target.getBoundingClientRect().top < 0.3 * innerHeight).length;
  const current = isAtEnd ? links.length - 1 : Math.max(begun - 1, 0);
  links.forEach((link, index) => {
    if (index === current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
};
addEventListener("scroll", mark, { passive: true });
addEventListener("resize", mark);
mark();

// A link into something folded opens it, and what is printed is all open.
const reveal = () => {
  let inside = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (; inside; inside = inside.parentElement) if (inside.tagName === "DETAILS") inside.open = true;
};
addEventListener("hashchange", reveal);
reveal();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));

// A picture enlarged: first as large as the window, then larger, to be scrolled.
const dialog = document.createElement("dialog");
dialog.className = "enlarged";
dialog.innerHTML = `
<div class="tools">
<span class="files"></span>
<button type="button" data-zoom="-1" aria-label="Smaller">−</button>
<button type="button" data-zoom="0">Fit</button>
<button type="button" data-zoom="1" aria-label="Larger">+</button>
<button type="button" data-close>Close</button>
</div>
<div class="view" tabindex="0"></div>`;
document.body.append(dialog);
const view = dialog.querySelector(".view");
let zoom = 0;
const rescale = (steps) => {
  const image = view.querySelector("img");
  // What is in the middle stays there.
  const x = (view.scrollLeft + view.clientWidth / 2) / view.scrollWidth;
  const y = (view.scrollTop + view.clientHeight / 2) / view.scrollHeight;
  zoom = steps === 0 ? 0 : Math.min(Math.max(zoom + steps, 0), 6);
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const fitted = Math.min(view.clientWidth / width, view.clientHeight / height);
  image.style.width = `${Math.floor(fitted * width * 1.5 ** zoom)}px`;
  view.scrollLeft = x * view.scrollWidth - view.clientWidth / 2;
  view.scrollTop = y * view.scrollHeight - view.clientHeight / 2;
};
for (const button of document.querySelectorAll(".picture > button")) {
  button.addEventListener("click", () => {
    const shown = button.querySelector("picture").cloneNode(true);
    // Narrow versions are for phones' columns.
    shown.querySelectorAll("source[media*='max-width']").forEach((source) => source.remove());
    view.replaceChildren(shown);
    const files = button.parentElement.querySelector(".files");
    dialog.querySelector(".files").innerHTML = files ? files.innerHTML : "";
    dialog.setAttribute("aria-label", shown.querySelector("img").alt);
    dialog.showModal();
    shown.querySelector("img").decode().then(() => rescale(0));
  });
}
dialog.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (event.target === dialog || (button && "close" in button.dataset)) dialog.close();
  else if (button) rescale(Number(button.dataset.zoom));
  else if (event.target.tagName === "IMG") rescale(zoom ? 0 : 2);
});
dialog.addEventListener("keydown", (event) => {
  const steps = { "+": 1, "=": 1, "-": -1, "0": 0 }[event.key];
  if (steps !== undefined) rescale(steps);
});
addEventListener("resize", () => { if (dialog.open) rescale(0); });
