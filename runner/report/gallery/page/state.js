// ---- state: what is shown and how, and the same as the part of the address behind the #

const PHONE = matchMedia("(max-width: 760px)");
const view = { as: "", rows: "", columns: "", only: {}, side: [], words: "", show: "all", size: 0, open: "", other: "" };

function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  Object.assign(view, {
    as: ["grid", "list"].includes(given.get("view")) ? given.get("view") : "",
    rows: given.get("rows") || "", columns: given.get("columns") || "",
    only: Object.fromEntries([...given].filter(([key]) => key.startsWith("only.")).map(([key, value]) => [key.slice(5), value])),
    side: given.getAll("side"), words: given.get("words") || "", show: given.get("show") in SHOWN ? given.get("show") : "all",
    size: Math.min(384, Math.max(0, parseInt(given.get("size"), 10) || 0)),
    open: given.get("open") || "", other: given.get("with") || "",
  });
}

function hash() {
  const made = new URLSearchParams();
  const put = (key, value, usual = "") => { if (value && value !== usual) made.append(key, value); };
  const [rows, columns] = usualAxes();
  put("view", view.as, usualView());
  put("rows", view.rows, rows);
  put("columns", view.columns, columns);
  for (const [name, value] of Object.entries(view.only)) made.append(`only.${name}`, value);
  for (const name of view.side) made.append("side", name);
  put("words", view.words);
  put("show", view.show, "all");
  put("size", view.size && String(view.size), String(usualSize()));
  put("open", view.open);
  put("with", view.open && view.other);
  return made.toString();
}

let written = "";
function writeHash() {
  written = hash();
  if (written !== location.hash.slice(1)) history.replaceState(null, "", written ? `#${written}` : location.pathname + location.search);
}

function usualAxes() {
  const names = swept().map(column => column.name);
  return data.usual.length ? data.usual : [names[0] || "", names[1] || ""];
}

const usualView = () => (data.usual.length ? "grid" : "list");

const usualSize = () => (PHONE.matches ? 104 : 168);

// What the address doesn't say, or says of axes that there are not.
function settleView() {
  const names = swept().map(column => column.name), [rows, columns] = usualAxes();
  if (!names.includes(view.rows)) view.rows = view.columns === rows ? columns : rows;
  if (!names.includes(view.columns) || view.columns === view.rows) view.columns = [columns, rows].find(name => name !== view.rows) || "";
  view.side = view.side.filter(name => names.includes(name) && name !== view.rows && name !== view.columns);
  view.only = Object.fromEntries(Object.entries(view.only).filter(([name, value]) => columnOf(name)?.values.includes(value)));
  view.as = view.as || usualView();
  view.size = view.size || usualSize();
}

// The axes that are neither rows nor columns.
const others = () => swept().filter(column => view.as === "list" || (column.name !== view.rows && column.name !== view.columns));
