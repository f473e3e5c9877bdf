// ---- data: what the pieces say of each row, a row being an item

const by = id => document.getElementById(id);
const MISSING = 0, DONE = 1, FAILED = 2, GONE = 3;
const PIECE = 2000, RECORDS = 200, AT_ONCE = 4, KEPT_RECORDS = 40;
const PICTURE = /\.(png|jpe?g|webp|avif)$/i;

const data = {
  state: null, columns: [], common: {}, usual: [], rows: 0, wanted: 0,
  pieces: [], marks: [], axesMark: "", states: new Uint8Array(0), codes: [],
};
const arrived = {}, records = new Map();

// The one function that pieces call. It keeps plain values, whatever they are.
window.gallery = (kind, number, value) => { arrived[`${kind}${number}`] = value; };

function load(name, mark) {
  return new Promise((done, fail) => {
    const script = document.createElement("script");
    script.src = `gallery/${name}.js?${mark}`;
    script.onload = () => { script.remove(); done(); };
    script.onerror = () => { script.remove(); fail(new Error(`gallery/${name}.js can't be read`)); };
    document.head.append(script);
  });
}

async function piece(kind, number, name, mark) {
  await load(name, mark);
  const key = `${kind}${number}`, value = arrived[key];
  delete arrived[key];
  if (value === undefined) throw new Error(`gallery/${name}.js holds nothing`);
  return value;
}

const numbered = number => String(number).padStart(5, "0");

// Reads the state, and what differs from what is known; `step` is called after each piece. Whether anything differed.
async function refresh(step) {
  const state = await piece("state", 0, "state", Date.now());
  const before = data.state;
  data.state = state;
  if (state.axes !== data.axesMark) {
    const axes = await piece("axes", 0, "axes", state.axes);
    takeAxes(axes, state);
  }
  grow(state.rows);
  data.wanted = state.wanted;
  const queue = state.items.map((mark, number) => [number, mark]).filter(([number, mark]) => data.marks[number] !== mark);
  const changed = queue.length > 0 || !before || before.running !== state.running;
  const work = async () => {
    for (let next = queue.shift(); next; next = queue.shift()) {
      const [number, mark] = next;
      take(number, await piece("items", number, `items-${numbered(number)}`, mark));
      data.marks[number] = mark;
      step();
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  return changed;
}

function takeAxes(axes, state) {
  data.columns = axes.columns.map((column, number) => ({
    ...column, number, short: column.name.replace(/^loras\./, ""),
    lower: column.values.map(value => value.toLowerCase()),
  }));
  data.common = axes.common;
  data.usual = axes.usual;
  data.axesMark = state.axes;
  data.codes = data.columns.map(() => new Uint32Array(state.rows));
  data.rows = state.rows;
  data.marks = [];
}

function grow(rows) {
  const enlarged = (array, size) => { const made = new array.constructor(size); made.set(array.subarray(0, size)); return made; };
  if (data.states.length !== rows) data.states = enlarged(data.states, rows);
  data.codes = data.codes.map(codes => (codes.length === rows ? codes : enlarged(codes, rows)));
  data.rows = rows;
}

function take(number, piece) {
  if (piece.codes.length !== data.columns.length) throw new Error("the data has changed meanwhile");
  const first = number * PIECE;
  piece.codes.forEach((codes, column) => data.codes[column].set(codes, first));
  for (let place = 0; place < piece.states.length; place++) data.states[first + place] = +piece.states[place];
  data.pieces[number] = {
    ids: piece.ids, names: piece.names, folders: piece.folders, folder: Uint16Array.from(piece.folder),
    sizes: piece.sizes, size: Uint16Array.from(piece.size), problems: piece.problems, records: Int32Array.from(piece.records),
  };
}

const pieceOf = row => data.pieces[Math.floor(row / PIECE)];
const isLoaded = row => pieceOf(row) !== undefined;
const idOf = row => pieceOf(row).ids[row % PIECE];
const sizeOf = row => { const own = pieceOf(row); return own.sizes[own.size[row % PIECE]]; };
const problemOf = row => pieceOf(row).problems[row] || "";
const valueOf = (row, column) => column.values[data.codes[column.number][row]];
const columnOf = name => data.columns.find(column => column.name === name);
const swept = () => data.columns.filter(column => column.swept);

function pathOf(row) {
  const own = pieceOf(row), place = row % PIECE, folder = own.folders[own.folder[place]];
  return folder ? `${folder}/${own.names[place]}` : own.names[place];
}

function rowOf(id) {
  for (const [number, own] of data.pieces.entries()) {
    const place = own ? own.ids.indexOf(id) : -1;
    if (place >= 0) return number * PIECE + place;
  }
  return -1;
}

// Only pictures below this page have an address.
function address(path) {
  const parts = path.split("/");
  if (!PICTURE.test(path) || parts.some(part => part === "" || part === "." || part === "..")) return null;
  return parts.map(encodeURIComponent).join("/");
}

const promptOf = row => { const column = columnOf("prompt"); return column ? valueOf(row, column) : data.common.prompt || ""; };

function describe(row) {
  return swept().map(column => `${column.name} ${valueOf(row, column) || "none"}`).join(", ") || promptOf(row);
}

// The record of a row, or null. Numbers that a browser would round are texts that begin with U+0001.
async function recordOf(row) {
  const place = pieceOf(row).records[row % PIECE];
  if (place < 0) return null;
  const number = Math.floor(place / RECORDS), mark = data.state.records[number], key = `${number} ${mark}`;
  if (!records.has(key)) {
    if (records.size >= KEPT_RECORDS) records.delete(records.keys().next().value);
    records.set(key, piece("records", number, `records-${numbered(number)}`, mark));
  }
  try {
    const { shared, records: lines } = await records.get(key);
    const line = { ...lines[place % RECORDS] };
    for (const name of ["model", "run", "env"]) if (name in line) line[name] = shared[line[name]];
    return line;
  } catch (error) {
    records.delete(key);
    throw error;
  }
}

const asJson = (value, indent) => JSON.stringify(value, null, indent).replace(/"\\u0001(-?\d+)"/g, "$1");
