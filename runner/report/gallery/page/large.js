// ---- large: one picture with all that is known of it

const large = { row: -1, other: -1, turn: 0 };

function openLarge(row) {
  large.row = active = row;
  const dialog = by("large");
  if (!dialog.open) dialog.showModal();
  view.open = idOf(row);
  view.other = large.other >= 0 ? idOf(large.other) : "";
  drawStage();
  showFacts(row);
  showLargeMarks();
  for (const [name, dx, dy] of MOVES) by(`go-${name}`).disabled = neighbour(row, dx, dy) === null;
  by("compare").textContent = large.other >= 0 ? "Compare with this one" : "Compare";
  preload(row);
  writeHash();
  // A button that had the focus may be gone or disabled now.
  const focused = document.activeElement;
  if (!dialog.contains(focused) || focused.disabled) dialog.focus();
}

const MOVES = [["left", -1, 0], ["right", 1, 0], ["up", 0, -1], ["down", 0, 1]];

function move(dx, dy) {
  const next = neighbour(large.row, dx, dy);
  if (next !== null) openLarge(next);
}

function closeLarge() {
  if (by("large").open) return; // another picture was opened before the browser told of the closing
  large.other = -1;
  view.open = view.other = "";
  writeHash();
  redraw();
  if (large.row >= 0) focusCell(large.row);
  large.row = -1;
}

function preload(row) {
  for (const [, dx, dy] of MOVES) {
    const next = neighbour(row, dx, dy);
    if (next !== null && !why(next)) new Image().src = address(pathOf(next));
  }
}

// A comparison begins with the picture in hand as A; what is moved to from there is B.
function compare() {
  large.other = large.row;
  const next = MOVES.slice(1).concat([MOVES[0]]).map(([, dx, dy]) => neighbour(large.row, dx, dy)).find(found => found !== null);
  openLarge(next ?? large.row);
  by("divider").focus();
}

function endComparison() {
  large.other = -1;
  openLarge(large.row);
  by("compare").focus();
}

function facts(row) {
  const own = swept().map(column => [column.name, valueOf(row, column), column]);
  const more = data.columns.filter(column => !column.swept && column.name !== "prompt").map(column => [column.name, valueOf(row, column)]);
  const common = Object.entries(data.common).filter(([name]) => name !== "prompt");
  return [...own, ...more, ...common].filter(([, value]) => value !== "");
}

// Each axis has buttons to its values before and after.
function showFacts(row) {
  by("prompt").textContent = promptOf(row);
  const reason = why(row) || (row >= data.wanted ? "The manifest no longer asks for this picture." : "");
  by("trouble").textContent = reason;
  by("trouble").hidden = !reason;
  by("facts").replaceChildren(...facts(row).flatMap(([name, value, column]) => {
    const said = element("dd");
    said.append(element("span", name === "prompt" || name === "negative" ? "said" : "", value));
    if (column) said.append(stepper(row, column));
    return [element("dt", "", name), said];
  }));
  const path = why(row) ? null : address(pathOf(row));
  by("file").hidden = path === null;
  if (path === null) by("file").removeAttribute("href");
  else by("file").href = path;
  for (const name of ["copy-command", "copy-item", "whole"]) by(name).hidden = pieceOf(row).records[row % PIECE] < 0;
  if (/^\w+:\/\//.test(folder())) by("copy-command").hidden = true; // no shell reads an object store
  if (by("whole").open) showRecord();
}

function stepper(row, column) {
  const made = element("span", "steps");
  for (const [sign, words, step] of [["‹", "before", -1], ["›", "after", 1]]) {
    const button = element("button", "", sign), found = along(row, column, step);
    button.type = "button";
    button.disabled = found < 0;
    button.setAttribute("aria-label", `The ${column.name} ${words}`);
    button.dataset.axis = column.name;
    button.dataset.step = step;
    made.append(button);
  }
  return made;
}

// The row with the same values but for the next one of a column.
function along(row, column, step) {
  const axes = swept().filter(each => each !== column), codes = data.codes[column.number];
  let best = -1;
  for (let other = 0; other < data.wanted; other++) {
    const ahead = (codes[other] - codes[row]) * step;
    if (ahead <= 0 || (best >= 0 && ahead >= (codes[best] - codes[row]) * step)) continue;
    if (isLoaded(other) && axes.every(each => data.codes[each.number][other] === data.codes[each.number][row])) best = other;
  }
  return best;
}

// The grid shows what is looked at, so that arrow keys go on from there.
function step(name, by_) {
  const column = columnOf(name), found = along(large.row, column, by_);
  if (found < 0) return;
  if (!placeOf(found) && others().includes(column)) {
    view.only[name] = valueOf(found, column);
    settled();
  }
  openLarge(found);
  document.querySelector(`[data-axis="${CSS.escape(name)}"][data-step="${by_}"]:enabled`)?.focus();
}

async function showRecord() {
  const turn = ++large.turn, row = large.row;
  let text;
  try {
    text = asJson(await recordOf(row), 2);
  } catch (error) {
    text = error.message;
  }
  if (turn === large.turn) by("record").textContent = text;
}

function showLargeMarks() {
  const id = idOf(large.row), starred = isStarred(id), rating = ratingOf(id);
  by("star").textContent = starred ? "★ Favourite" : "☆ Favourite";
  by("star").setAttribute("aria-pressed", starred);
  by("rating").replaceChildren(...[1, 2, 3, 4, 5].map(number => {
    const button = element("button", number <= rating ? "lit" : "", String(number));
    button.type = "button";
    button.dataset.rating = number;
    button.setAttribute("aria-pressed", number === rating);
    button.setAttribute("aria-label", `Rate ${number}`);
    return button;
  }));
}

async function copyOf(make, button) {
  try {
    const record = await recordOf(large.row);
    if (record) await toClipboard(make(record), button);
  } catch (error) {
    say(error.message);
  }
}
