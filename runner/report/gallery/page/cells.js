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
function picture(row, box, large) {
  const path = pathOf(row), size = sizeOf(row), own = address(path), image = new Image();
  image.alt = `${promptOf(row)} (${describe(row)})`;
  image.decoding = "async";
  image.draggable = false;
  if (isSmall(size)) image.className = "pixels";
  const scale = fitted(size, box);
  image.width = Math.max(1, Math.round(size[0] * scale));
  image.height = Math.max(1, Math.round(size[1] * scale));
  const small = !large && Math.max(...size) > THUMBNAIL;
  image.onerror = () => {
    if (small && !image.dataset.whole) {
      image.dataset.whole = "true";
      image.src = own;
    } else {
      image.replaceWith(element("span", "why", "missing: its file can't be read"));
    }
  };
  image.src = small ? `thumbs/${own}.webp` : own;
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

const cellKey = (row, box) => `${row} ${data.states[row]} ${pathOf(row)} ${box}`;

// A button with the picture; beside it its marks.
function makeCell(row, box, more) {
  const cell = element("div", "cell"), button = element("div", "shot"), reason = why(row);
  cell.dataset.row = row;
  cell.dataset.key = cellKey(row, box);
  button.style.width = `${box[0]}px`;
  button.style.height = `${box[1]}px`;
  if (reason) {
    button.classList.add(classOf(row));
    button.append(element("span", "why", reason));
    button.title = reason;
  } else {
    button.append(picture(row, box, false));
  }
  cell.append(button);
  if (more > 1) cell.append(element("span", "more", `1 of ${more}`));
  const star = element("button", "star", "☆");
  star.type = "button";
  star.tabIndex = -1;
  cell.append(star, element("span", "rated"));
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
function caption(row) {
  const shown = data.columns.filter(column => column.name !== "prompt" && (column.swept || row >= data.wanted) && valueOf(row, column));
  const text = shown.map(column => `${column.short} ${valueOf(row, column)}`).join(" · ");
  const made = element("p", "caption", text || why(row) || "made");
  made.title = text;
  return made;
}
