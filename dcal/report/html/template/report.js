"use strict";
// Three things move: the pointer over charts and confusion matrices, tables that sort, patches that follow the slider.

const decode = (text) => new Uint16Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// charts: the epoch nearest to the pointer, its values in the legend
for (const figure of document.querySelectorAll(".chart[data-numbers]")) {
  const { at, epoch, values } = JSON.parse(figure.dataset.numbers);
  const svg = figure.querySelector("svg"), cursor = figure.querySelector(".cursor");
  const items = [...figure.querySelectorAll(".legend li")];
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const n = at.reduce((best, place, i) => (Math.abs(place - x) < Math.abs(at[best] - x) ? i : best), 0);
    cursor.setAttribute("x1", at[n]);
    cursor.setAttribute("x2", at[n]);
    cursor.style.visibility = "visible";
    items.forEach((item) => {
      const value = values[item.dataset.name][n];
      item.querySelector("span").textContent = value === null ? "" : ` ${value}`;
    });
    figure.querySelector(".epoch").textContent = ` · epoch ${epoch[n]}`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    items.forEach((item) => (item.querySelector("span").textContent = ""));
    figure.querySelector(".epoch").textContent = "";
  });
}

// tables: a click on a heading sorts by it, another one turns the order
for (const button of document.querySelectorAll("th[aria-sort] button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of head.parentNode.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
    const rows = [...body.rows].sort((a, b) => sign * key(a).localeCompare(key(b), undefined, { numeric: true }));
    body.append(...rows);
  });
}

// confusion matrices: the cell under the pointer
for (const figure of document.querySelectorAll(".confusion")) {
  const { names, cells, totals } = JSON.parse(figure.dataset.cells);
  const times = new Map(cells.map(([row, column, count]) => [row * names.length + column, count]));
  const field = figure.querySelector(".field"), mark = figure.querySelector(".cell"), out = figure.querySelector("output");
  field.addEventListener("pointermove", (event) => {
    const box = field.querySelector("img").getBoundingClientRect(), size = names.length;
    const column = clamp(Math.floor(((event.clientX - box.left) / box.width) * size), 0, size - 1);
    const row = clamp(Math.floor(((event.clientY - box.top) / box.height) * size), 0, size - 1);
    Object.assign(mark.style, {
      left: `calc(${(100 * column) / size}% - 2px)`, top: `calc(${(100 * row) / size}% - 2px)`,
      width: `calc(${100 / size}% + 4px)`, height: `calc(${100 / size}% + 4px)`, visibility: "visible",
    });
    const count = times.get(row * size + column) ?? 0;
    const what = row === column ? "recognised" : `taken for ${names[column]}`;
    out.textContent = `${names[row]}: ${count} of ${totals[row]} ${what}`;
  });
  field.addEventListener("pointerleave", () => (mark.style.visibility = "hidden"));
}

// pictures: the patches of the chosen ratio, or the attention, over each image
const inferno = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
function heat(share) {
  const place = share * (inferno.length - 1), n = Math.min(inferno.length - 2, Math.floor(place));
  return inferno[n].map((low, i) => low + (place - n) * (inferno[n + 1][i] - low));
}

function draw(look, ratio, mode) {
  const canvas = look.querySelector("canvas");
  look.rank ??= decode(look.dataset.rank);
  look.attention ??= decode(look.dataset.attention);
  const { rank, attention } = look, patches = rank.length, least = attention.reduce((low, value) => Math.min(low, value));
  const count = Math.max(1, Math.floor(ratio * patches + 1e-9)); // as dcal.attention.rollout.num_selected
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  for (let patch = 0; patch < patches; patch++) {
    if (mode === "selection" && rank[patch] >= count) image.data.set([8, 8, 14, 205], 4 * patch);
    if (mode === "attention") image.data.set([...heat((attention[patch] - least) / Math.max(1, 65535 - least)), 150], 4 * patch);
  }
  context.putImageData(image, 0, 0);
  canvas.classList.toggle("smooth", mode === "attention");
  const total = attention.reduce((sum, value) => sum + value, 0);
  const held = attention.reduce((sum, value, patch) => sum + (rank[patch] < count ? value : 0), 0);
  look.dataset.count = count;
  return { count, patches, share: held / total };
}

for (const section of document.querySelectorAll(".looks")) {
  const slider = section.querySelector("input[type=range]"), out = section.querySelector("output");
  const looks = [...section.querySelectorAll(".look")];
  const update = () => {
    const mode = section.querySelector("input[type=radio]:checked").value;
    const told = looks.map((look) => draw(look, slider.value / 100, mode));
    if (!told.length) return;
    const share = told.reduce((sum, one) => sum + one.share, 0) / told.length;
    const text = `R = ${slider.value} %: ${told[0].count} of ${told[0].patches} patches, ${Math.round(100 * share)} % of the attention`;
    out.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    slider.disabled = mode !== "selection";
  };
  section.addEventListener("input", update);
  update();
}
