// ---- layout: which block of the canvas lies where, a block being a row of the grid, a heading, or a row of cards

const GAP = 6, HEADING = 52, CAPTION = 40, TALLEST = 15e6;
const layout = { blocks: [], width: 0, height: 0, top: 0, left: 0, grid: null, where: new Int32Array(0), cell: [0, 0], shown: 0 };

// The rows that pass the filter, as a mark for each.
function matching() {
  const made = tests(view.words), shows = SHOWN[view.show][1], marks = new Uint8Array(data.rows);
  for (let row = 0; row < data.rows; row++) marks[row] = isLoaded(row) && passes(row, made) && shows(row) ? 1 : 0;
  return marks;
}

// In the grid an axis has one value, the first one unless another is chosen; in the list any.
function selected(column) {
  if (view.as === "grid" && view.side.includes(column.name)) return -1;
  const place = column.values.indexOf(view.only[column.name]);
  return place >= 0 ? place : view.as === "grid" ? 0 : -1;
}

function arrange(room) {
  const match = matching();
  for (const column of others()) {
    const code = selected(column), codes = data.codes[column.number];
    if (code >= 0) for (let row = 0; row < data.wanted; row++) if (codes[row] !== code) match[row] = 0;
  }
  Object.assign(layout, { blocks: [], grid: null, where: new Int32Array(data.rows).fill(-1), top: 0, left: 0, shown: 0 });
  const sides = boxSides(match);
  layout.cell = sides;
  if (view.as === "grid") arrangeGrid(match, room);
  else arrangeList(match, room, 0, data.wanted, null);
  arrangeList(match, room, data.wanted, data.rows, "No longer in the manifest");
  const last = layout.blocks[layout.blocks.length - 1];
  layout.height = last ? last.y + last.h + GAP : 0;
  for (let row = 0; row < data.rows; row++) layout.shown += match[row];
}

// A box that any picture fits into without much room beside it.
function boxSides(match) {
  let ratio = 0, widest = 0;
  for (let row = 0, seen = 0; row < data.rows && seen < 500; row++) {
    if (!match[row]) continue;
    const [width, height] = sizeOf(row);
    ratio = Math.max(ratio, height / width);
    widest = Math.max(widest, width, height);
    seen += 1;
  }
  // Of small pictures the box is a whole multiple, as they themselves are.
  const side = widest && widest <= SMALL ? widest * Math.max(1, Math.round(view.size / widest)) : view.size;
  return [side, Math.round(side * Math.min(2, Math.max(0.5, ratio || 1)))];
}

function arrangeGrid(match, room) {
  const rows = columnOf(view.rows), columns = columnOf(view.columns);
  const across = [columns, ...view.side.map(columnOf)].filter(Boolean), cells = new Map(), usedRows = new Set(), usedColumns = new Set();
  for (let row = 0; row < data.wanted; row++) {
    if (!match[row]) continue;
    const down = rows ? data.codes[rows.number][row] : 0;
    const column = across.reduce((code, axis) => code * axis.values.length + data.codes[axis.number][row], 0);
    const key = `${down} ${column}`, there = cells.get(key);
    if (there === undefined) cells.set(key, row);
    else if (Array.isArray(there)) there.push(row);
    else cells.set(key, [there, row]);
    usedRows.add(down);
    usedColumns.add(column);
  }
  const ascending = set => [...set].sort((one, other) => one - other);
  const grid = { rows: ascending(usedRows), columns: ascending(usedColumns), cells, down: rows, across };
  layout.grid = grid;
  layout.left = PHONE.matches ? 84 : 176;
  grid.levels = across.map(axis => (axis.values.some(value => value.length * 7 > layout.cell[0]) ? 42 : 26));
  grid.levels[0] = Math.max(grid.levels[0] || 0, across.length > 1 ? 26 : 42);
  layout.top = grid.columns.length ? grid.levels.reduce((sum, height) => sum + height, 0) : 0;
  const most = TALLEST / Math.max(1, grid.rows.length) - GAP;
  if (layout.cell[1] > most) layout.cell = [Math.floor(layout.cell[0] * most / layout.cell[1]), Math.floor(most)];
  layout.width = layout.left + grid.columns.length * (layout.cell[0] + GAP) + GAP;
  grid.rows.forEach((code, place) => {
    layout.blocks.push({ kind: "row", y: layout.top + GAP + place * (layout.cell[1] + GAP), h: layout.cell[1], code, place });
    for (const column of grid.columns) for (const row of [cells.get(`${code} ${column}`) ?? []].flat()) layout.where[row] = place;
  });
  layout.width = Math.max(layout.width, room);
}

function arrangeList(match, room, first, end, title) {
  const groups = new Map(), prompts = columnOf("prompt");
  for (let row = first; row < end; row++) {
    if (!match[row]) continue;
    const key = title === null && prompts ? data.codes[prompts.number][row] : -1;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  }
  const margin = PHONE.matches ? 12 : 24, [width, height] = layout.cell, wide = Math.max(1, Math.floor((room - 2 * margin + 2 * GAP) / (width + 2 * GAP)));
  const last = layout.blocks[layout.blocks.length - 1];
  let y = last ? last.y + last.h + 3 * GAP : 0;
  let left = 0;
  for (const rows of groups.values()) left += rows.length;
  for (const [key, rows] of groups) {
    if (y > TALLEST) break; // browsers show nothing that lies further down
    const text = title ?? (key < 0 ? data.common.prompt || "No prompt" : prompts.values[key] || "No prompt");
    layout.blocks.push({ kind: "heading", y, h: HEADING, text, count: rows.length });
    y += HEADING;
    for (let start = 0; start < rows.length && y <= TALLEST; start += wide) {
      const some = rows.slice(start, start + wide);
      for (const row of some) layout.where[row] = layout.blocks.length;
      layout.blocks.push({ kind: "cards", y, h: height + CAPTION, rows: some, margin });
      y += height + CAPTION + 2 * GAP;
      left -= some.length;
    }
    y += 2 * GAP;
  }
  if (left) layout.blocks.push({ kind: "heading", y, h: HEADING, text: "More pictures: filter by words or values to see them", count: left });
  if (!layout.grid) layout.width = room;
}

// The rows in a cell of the grid.
function cellRows(down, column) {
  const there = layout.grid.cells.get(`${down} ${column}`);
  return there === undefined ? [] : Array.isArray(there) ? there : [there];
}

// The places of a row: its block, and its place in that.
function placeOf(row) {
  const block = layout.where[row] ?? -1;
  if (block < 0) return null;
  const own = layout.blocks[block];
  if (own.kind === "cards") return [block, own.rows.indexOf(row)];
  return [block, layout.grid.columns.findIndex(column => cellRows(own.code, column).includes(row))];
}

const widthOf = block => (block.kind === "row" ? layout.grid.columns.length : block.kind === "cards" ? block.rows.length : 0);
const rowAt = (block, place) => (block.kind === "row" ? cellRows(block.code, layout.grid.columns[place])[0] : block.rows[place]);

// The next row in a direction that has an item, or null at the edge. Cards go on in the next line.
function neighbour(row, dx, dy) {
  const place = placeOf(row);
  if (!place) return null;
  let [block, column] = place;
  while (dx) {
    column += dx;
    const own = layout.blocks[block];
    if (column < 0 || column >= widthOf(own)) {
      if (own.kind === "row") return null;
      do block += dx; while (layout.blocks[block] && layout.blocks[block].kind === "heading");
      if (layout.blocks[block]?.kind !== "cards") return null;
      column = dx > 0 ? 0 : widthOf(layout.blocks[block]) - 1;
    }
    const found = rowAt(layout.blocks[block], column);
    if (found !== undefined) return found;
  }
  while (dy) {
    block += dy;
    const own = layout.blocks[block];
    if (!own) return null;
    if (own.kind === "heading") continue;
    const found = rowAt(own, own.kind === "cards" ? Math.min(column, own.rows.length - 1) : column);
    if (found !== undefined) return found;
  }
  return null;
}
