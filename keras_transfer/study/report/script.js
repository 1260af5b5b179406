"use strict";
// Tables are sorted by the headers of their columns.
function sortBy(table, column, header) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  const key = row => {
    const cell = row.cells[column];
    return (cell.dataset.sort ?? cell.textContent).trim();
  };
  const missing = text => ["", "nan", "None", "NaT", "<NA>"].includes(text);
  const number = text => ({inf: Infinity, "-inf": -Infinity})[text] ?? Number(text);
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    return x === y ? 0 : isNaN(x) || isNaN(y) ? a.localeCompare(b, "en", {numeric: true}) : x - y;
  };
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const known = rows.filter(row => !missing(key(row)));
  known.sort((a, b) => (descending ? -1 : 1) * compare(key(a), key(b)));
  // What is not known comes last either way.
  body.append(...known, ...rows.filter(row => missing(key(row))));
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
}
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(table, column, header));
    header.append(button);
    header.setAttribute("aria-sort", "none");
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}

// Figures that one can touch take the place of pictures when they come near.
const plotted = new Set();
let plotly;
function library() {
  plotly ??= (async () => {
    const text = document.getElementById("plotly").textContent.trim();
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    return globalThis.Plotly;
  })();
  return plotly;
}
// Colours of letters and lines, which depend on light and dark.
function colours(layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, grid, paper] = ["--ink", "--grid", "--paper"].map(n => style.getPropertyValue(n).trim());
  const axis = {gridcolor: grid, zerolinecolor: grid, linecolor: ink};
  const found = {
    "font.color": ink, "colorway": [ink], "modebar.color": ink, "modebar.bgcolor": paper,
    "legend.bgcolor": paper, "hoverlabel.bgcolor": paper, "hoverlabel.font.color": ink,
  };
  const names = Object.keys(layout).filter(name => /^[xy]axis\d*$/.test(name));
  if (layout.scene) names.push("scene.xaxis", "scene.yaxis", "scene.zaxis");
  for (const name of names)
    for (const [key, value] of Object.entries(axis)) found[`${name}.${key}`] = value;
  return found;
}
function set(object, path, value) {
  const names = path.split("."), last = names.pop();
  names.reduce((at, name) => at[name] ??= {}, object)[last] = value;
}
async function draw(holder) {
  const Plotly = await library();
  const {data, layout} = JSON.parse(holder.querySelector("script").textContent);
  layout.font = {family: getComputedStyle(document.body).fontFamily, size: 12};
  for (const [path, value] of Object.entries(colours(layout))) set(layout, path, value);
  // A finger that moves over it scrolls the page.
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = layout.scene ? "orbit" : false;
  holder.closest(".touch").classList.add("live");
  // None of the buttons that send anything anywhere.
  const buttons = layout.scene
    ? ["toImage", "resetCameraDefault3d"] : ["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"];
  await Plotly.newPlot(holder, data, layout, {
    responsive: true, displaylogo: false, modeBarButtons: [buttons],
    displayModeBar: layout.height > 200 ? "hover" : false,
  });
  plotted.add(holder);
}
if (globalThis.DecompressionStream && globalThis.IntersectionObserver) {
  const observer = new IntersectionObserver((entries, self) => {
    for (const entry of entries.filter(e => e.isIntersecting)) {
      self.unobserve(entry.target);
      for (const holder of entry.target.querySelectorAll(".plot")) draw(holder);
    }
  }, {rootMargin: "800px"});
  for (const figure of document.querySelectorAll(".touch")) observer.observe(figure);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", async () => {
    const Plotly = await library();
    for (const holder of plotted) Plotly.relayout(holder, colours(holder.layout));
  });
}
