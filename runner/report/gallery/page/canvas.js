// ---- canvas: only what is in sight is in the document, and a little around it

const scroller = by("scroller"), canvas = by("canvas");
const drawn = new Map(); // block -> its element
let pool = new Map(); // cells that a new layout may use again, by what they show
let active = -1, due = 0, header = null;

function redraw() {
  const keep = canvas.contains(document.activeElement);
  pool = new Map();
  for (const cell of canvas.querySelectorAll(".cell")) pool.set(cell.dataset.key, cell);
  canvas.replaceChildren();
  drawn.clear();
  arrange(scroller.clientWidth);
  canvas.style.width = `${layout.width}px`;
  canvas.style.height = `${layout.height}px`;
  const grid = view.as === "grid";
  for (const name of ["role", "aria-label", "aria-rowcount", "aria-colcount"]) canvas.removeAttribute(name);
  if (grid) {
    canvas.setAttribute("role", "grid");
    canvas.setAttribute("aria-label", `Rows: ${view.rows || "none"}, columns: ${view.columns || "none"}`);
    canvas.setAttribute("aria-rowcount", layout.grid.rows.length + 1);
    canvas.setAttribute("aria-colcount", layout.grid.columns.length + 1);
  }
  header = grid && layout.grid.columns.length ? element("div", "header") : grid ? null : element("div", "stuck");
  if (header) canvas.append(header);
  if (active >= 0 && !placeOf(active)) active = -1;
  draw();
  pool.forEach(release);
  pool.clear();
  if (keep && active >= 0) focusCell(active);
}

function later() {
  if (!due) due = requestAnimationFrame(() => { due = 0; draw(); });
}

function inSight() {
  const height = scroller.clientHeight, width = scroller.clientWidth, beyond = Math.max(600, height);
  return {
    top: scroller.scrollTop - beyond, bottom: scroller.scrollTop + height + beyond,
    left: scroller.scrollLeft - width / 2, right: scroller.scrollLeft + 1.5 * width,
  };
}

function firstBelow(y) {
  let low = 0, high = layout.blocks.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (layout.blocks[middle].y + layout.blocks[middle].h < y) low = middle + 1;
    else high = middle;
  }
  return low;
}

function draw() {
  const sight = inSight(), shown = new Set();
  if (active < 0) active = firstRow();
  for (let place = firstBelow(sight.top); place < layout.blocks.length && layout.blocks[place].y < sight.bottom; place++) {
    shown.add(place);
    const block = layout.blocks[place];
    if (!drawn.has(place)) {
      drawn.set(place, makeBlock(block, place));
      canvas.append(drawn.get(place));
    }
    if (block.kind === "row") drawRow(block, drawn.get(place), sight);
  }
  for (const [place, made] of drawn) {
    if (shown.has(place)) continue;
    made.remove();
    made.querySelectorAll(".cell").forEach(release);
    drawn.delete(place);
  }
  if (header) drawHeader(sight);
  for (const cell of canvas.querySelectorAll(".cell[tabindex='0']")) cell.tabIndex = -1;
  const cell = active >= 0 && cellOf(active);
  if (cell) cell.tabIndex = 0;
}

function firstRow() {
  for (const block of layout.blocks) for (let place = 0; place < widthOf(block); place++) {
    const row = rowAt(block, place);
    if (row !== undefined) return row;
  }
  return -1;
}

function makeBlock(block, place) {
  const made = element("div", `block ${block.kind}`);
  made.style.top = `${block.y}px`;
  made.style.height = `${block.h}px`;
  if (block.kind === "row") {
    made.setAttribute("role", "row");
    made.setAttribute("aria-rowindex", block.place + 2);
    const value = layout.grid.down ? layout.grid.down.values[block.code] : "";
    const head = element("div", "side");
    head.append(element("span", "", value || "none"));
    head.setAttribute("role", "rowheader");
    head.style.width = `${layout.left - GAP}px`;
    head.title = `${view.rows} ${value}`;
    made.append(head);
  } else {
    const inner = element("div", "line");
    inner.style.width = `${scroller.clientWidth}px`;
    const grid = view.as === "grid";
    if (block.kind === "heading") {
      inner.append(element("h2", "", block.text), element("span", "count", block.count.toLocaleString()));
      inner.title = block.text;
      if (grid) inner.firstChild.setAttribute("role", "rowheader");
    } else {
      inner.style.paddingLeft = `${block.margin}px`;
      block.rows.forEach(row => inner.append(card(row)));
    }
    if (grid || block.kind === "cards") inner.setAttribute("role", grid ? "row" : "list");
    made.append(inner);
  }
  return made;
}

function reused(row, box, more) {
  const key = cellKey(row, box, more), kept = pool.get(key);
  pool.delete(key);
  return kept || makeCell(row, box, more);
}

function card(row) {
  const made = reused(row, layout.cell, 1);
  made.removeAttribute("style");
  made.style.width = `${layout.cell[0]}px`;
  made.setAttribute("role", view.as === "grid" ? "gridcell" : "listitem");
  for (const name of ["data-place", "aria-colindex"]) made.removeAttribute(name);
  showCaption(made, row);
  return made;
}

const columnLeft = place => layout.left + place * (layout.cell[0] + GAP);

function columnsIn(sight) {
  const step = layout.cell[0] + GAP, count = layout.grid.columns.length;
  return [Math.max(0, Math.floor((sight.left - layout.left) / step)), Math.min(count, Math.ceil((sight.right - layout.left) / step))];
}

function drawRow(block, made, sight) {
  const [first, end] = columnsIn(sight), there = new Map();
  for (const cell of made.querySelectorAll("[data-place]")) {
    const place = +cell.dataset.place;
    if (place < first || place >= end) {
      cell.remove();
      if (cell.className === "cell") release(cell);
    } else there.set(place, cell);
  }
  for (let place = first; place < end; place++) {
    if (there.has(place)) continue;
    const rows = cellRows(block.code, layout.grid.columns[place]);
    const cell = rows.length ? reused(rows[0], layout.cell, rows.length) : element("div", "blank");
    if (rows.length) cell.lastChild.textContent = "";
    cell.dataset.place = place;
    cell.setAttribute("role", "gridcell");
    cell.setAttribute("aria-colindex", place + 2);
    cell.style.cssText = "";
    cell.style.left = `${columnLeft(place)}px`;
    cell.style.width = `${layout.cell[0]}px`;
    cell.style.height = `${layout.cell[1]}px`;
    made.append(cell);
  }
}

// The headings of the columns, one level for each axis across; or the heading of the prompt in sight.
function drawHeader(sight) {
  if (header.className === "stuck") {
    const place = firstBelow(scroller.scrollTop + 1);
    let own = place;
    while (own > 0 && layout.blocks[own]?.kind !== "heading") own -= 1;
    const block = layout.blocks[own];
    header.hidden = !block || block.kind !== "heading" || block.y >= scroller.scrollTop;
    if (header.hidden || header.dataset.shown === String(own)) return;
    header.dataset.shown = own;
    header.replaceChildren(element("h2", "", block.text), element("span", "count", block.count.toLocaleString()));
    header.style.width = `${scroller.clientWidth}px`;
    header.setAttribute("aria-hidden", "true");
    return;
  }
  const [first, end] = columnsIn(sight), { across, columns, levels } = layout.grid;
  if (header.dataset.shown === `${first} ${end}`) return;
  header.dataset.shown = `${first} ${end}`;
  header.style.height = `${layout.top}px`;
  header.setAttribute("role", "row");
  const corner = element("div", "corner");
  corner.setAttribute("role", "columnheader");
  corner.append(element("span", "", view.rows), element("span", "", across.map(axis => axis.short).join(" / ")));
  corner.style.width = `${layout.left - GAP}px`;
  header.replaceChildren(corner);
  let top = 0;
  across.forEach((axis, level) => {
    const below = across.slice(level + 1).reduce((product, each) => product * each.values.length, 1);
    const group = place => Math.floor(columns[place] / below);
    for (let place = first; place < end;) {
      let start = place, stop = place + 1;
      while (start > 0 && group(start - 1) === group(place)) start -= 1;
      while (stop < columns.length && group(stop) === group(place)) stop += 1;
      const value = axis.values[group(place) % axis.values.length], head = element("div", "head");
      head.append(element("span", "", value || "none"));
      head.setAttribute("role", "columnheader");
      head.setAttribute("aria-colindex", start + 2);
      head.title = `${axis.name} ${value}`;
      head.style.top = `${top}px`;
      head.style.height = `${levels[level]}px`;
      head.style.left = `${columnLeft(start)}px`;
      head.style.width = `${(stop - start) * (layout.cell[0] + GAP) - GAP}px`;
      head.firstChild.style.left = `${layout.left}px`;
      header.append(head);
      place = stop;
    }
    top += levels[level];
  });
}

// Brings a row's cell into sight, below the headings and beside them.
function reveal(row) {
  const place = placeOf(row);
  if (!place) return;
  const block = layout.blocks[place[0]], above = block.kind === "row" ? layout.top : view.as === "list" ? HEADING : 0;
  if (block.y - above < scroller.scrollTop) scroller.scrollTop = block.y - above - GAP;
  else if (block.y + block.h > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = block.y + block.h - scroller.clientHeight + GAP;
  if (block.kind !== "row") return;
  const left = columnLeft(place[1]);
  if (left - layout.left < scroller.scrollLeft) scroller.scrollLeft = left - layout.left;
  else if (left + layout.cell[0] > scroller.scrollLeft + scroller.clientWidth) scroller.scrollLeft = left + layout.cell[0] + GAP - scroller.clientWidth;
}

const cellOf = row => canvas.querySelector(`.cell[data-row="${row}"]`);

function focusCell(row) {
  active = row;
  reveal(row);
  draw();
  cellOf(row)?.focus({ preventScroll: true });
}
