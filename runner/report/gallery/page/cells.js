// ---- cells: one picture, or why there is none

const THUMBNAIL = +document.body.dataset.thumbnail, SMALL = 128;

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Up to it a picture is shown in whole multiples, each of its pixels a square.
const isSmall = ([width, height]) => Math.max(width, height) <= SMALL;

function fitted([width, height], [boxWidth, boxHeight]) {
  const scale = Math.min(boxWidth / width, boxHeight / height);
  return isSmall([width, height]) && scale >= 1 ? Math.floor(scale) : scale;
}

// The picture in a box; its thumbnail where it is large, and itself where that isn't there.
function picture(image, row, box, large) {
  const path = pathOf(row), size = sizeOf(row), own = address(path), scale = fitted(size, box);
  image.alt = `${promptOf(row)} (${describe(row)})`;
  image.className = isSmall(size) ? "pixels" : "";
  image.width = Math.max(1, Math.round(size[0] * scale));
  image.height = Math.max(1, Math.round(size[1] * scale));
  const small = !large && Math.max(...size) > THUMBNAIL;
  let whole = !small;
  image.onerror = () => {
    if (whole) {
      image.hidden = true;
      image.parentNode?.append(element("span", "why", "missing: its file can't be read"));
    } else {
      whole = true;
      image.src = own;
    }
  };
  image.src = small ? `thumbs/${own}.webp` : own;
  return image;
}

function newImage() {
  const image = new Image();
  image.decoding = "async";
  image.draggable = false;
  return image;
}

function why(row) {
  const state = data.states[row], path = pathOf(row);
  if (state === FAILED) return `failed: ${problemOf(row)}`;
  if (state === MISSING) return "not made yet";
  if (state === GONE || !address(path)) return `missing: ${path || "no file was recorded"}`;
  return "";
}

const classOf = row => (data.states[row] === FAILED ? "failed" : data.states[row] === MISSING ? "waiting" : "gone");

const cellKey = (row, box, more) => `${row} ${data.states[row]} ${more} ${pathOf(row)} ${box}`;

// Cells are used again: a browser keeps those that were thrown away, with their pictures, for a long time.
const free = [];

function newCell() {
  const cell = element("div", "cell"), shot = element("div", "shot"), star = element("button", "star");
  shot.append(newImage());
  star.type = "button";
  star.tabIndex = -1;
  cell.append(shot, element("span", "more"), star, element("span", "rated"), element("p", "caption"));
  return cell;
}

function release(cell) {
  const image = cell.querySelector("img");
  image.onerror = null;
  image.removeAttribute("src"); // or the old picture would stand until the new one is there
  free.push(cell);
}

// The picture of a row, or why there is none, and its marks; `more` is how many rows share the cell.
function makeCell(row, box, more) {
  const cell = free.pop() || newCell(), shot = cell.firstChild, image = shot.firstChild, reason = why(row);
  cell.dataset.row = row;
  cell.dataset.key = cellKey(row, box, more);
  cell.tabIndex = -1;
  shot.className = reason ? `shot ${classOf(row)}` : "shot";
  shot.style.width = `${box[0]}px`;
  shot.style.height = `${box[1]}px`;
  shot.title = reason;
  while (shot.childNodes.length > 1) shot.lastChild.remove();
  image.hidden = reason !== "";
  if (reason) shot.append(element("span", "why", reason));
  else picture(image, row, box, false);
  cell.querySelector(".more").textContent = more > 1 ? `1 of ${more}` : "";
  showMarks(cell);
  return cell;
}

function showMarks(cell) {
  const row = +cell.dataset.row, id = idOf(row), starred = isStarred(id), rating = ratingOf(id);
  const star = cell.querySelector(".star"), rated = cell.querySelector(".rated");
  star.textContent = starred ? "★" : "☆";
  star.setAttribute("aria-pressed", starred);
  star.setAttribute("aria-label", `Favourite: ${describe(row)}`);
  rated.textContent = rating ? String(rating) : "";
  const words = [describe(row), why(row), starred && "favourite", rating && `rated ${rating}`];
  cell.setAttribute("aria-label", words.filter(Boolean).join(", "));
}

// What tells a card from the others below its heading.
function showCaption(cell, row) {
  const shown = data.columns.filter(column => column.name !== "prompt" && (column.swept || row >= data.wanted) && valueOf(row, column));
  const text = shown.map(column => `${column.short} ${valueOf(row, column)}`).join(" · "), caption = cell.lastChild;
  caption.textContent = text || why(row) || "made";
  caption.title = text;
}
