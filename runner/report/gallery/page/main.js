// ---- main: what happens when

const main = { changed: 0, patience: 0, drawn: 0, ready: false };
const POLL = 3000; // ms between two looks at a run that goes on
const MOST_PATIENCE = 20; // looks without anything new, after which it is four times that

function say(text) {
  by("note").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { by("note").textContent = ""; }, 6000);
}

// Everything anew after a choice or new data.
function settled() {
  settleView();
  drawBars();
  redraw();
  drawCounts();
  writeHash();
}

function marksChanged() {
  if (!main.ready) return;
  if (view.show !== "all" && view.show !== "done" && view.show !== "missing" && view.show !== "failed" && !by("large").open) redraw();
  for (const cell of canvas.querySelectorAll(".cell")) showMarks(cell);
  if (large.row >= 0) showLargeMarks();
  drawSave();
  drawCounts();
}

let soon = 0;
function stepLoaded() {
  if (!main.ready) begin();
  // Each piece at once while there are few, and then not more often than can be seen.
  clearTimeout(soon);
  const wait = performance.now() - main.drawn > 150 ? 0 : 150;
  soon = setTimeout(() => {
    main.drawn = performance.now();
    redraw();
    drawCounts();
    openFromHash();
  }, wait);
}

function begin() {
  main.ready = true;
  readHash();
  readMarks();
  settled();
}

function openFromHash() {
  if (!view.open || by("large").open) return;
  const row = rowOf(view.open);
  if (row < 0) return;
  large.other = view.other ? rowOf(view.other) : -1;
  openLarge(row);
}

async function look() {
  try {
    if (await refresh(stepLoaded)) {
      main.changed = performance.now();
      main.patience = 0;
      if (!main.ready) begin();
      clearTimeout(soon);
      drawBars();
      redraw();
      openFromHash();
      if (large.row >= 0 && by("large").open) { drawStage(); showFacts(large.row); }
    }
    drawCounts();
  } catch (error) {
    if (!data.state || !data.state.running) {
      const text = `${error.message}. It belongs beside this page; make it with: runner gallery FOLDER`;
      by("counts").textContent = main.ready ? "incomplete" : "no data";
      by("nothing").hidden = main.ready;
      if (main.ready) by("note").textContent = text;
      else by("nothing").textContent = text;
      return;
    }
  }
  if (data.state.running) {
    main.patience = Math.min(MOST_PATIENCE, main.patience + 1);
    setTimeout(look, POLL * Math.max(1, main.patience / 5));
  }
}

// ---- the pictures

canvas.addEventListener("click", event => {
  const cell = event.target.closest(".cell");
  if (!cell) return;
  const row = +cell.dataset.row;
  if (event.target.closest(".star")) toggleStar(idOf(row));
  else if (event.target.closest(".shot")) openLarge(row);
});

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

canvas.addEventListener("keydown", event => {
  const cell = event.target.closest(".cell");
  if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
  const row = +cell.dataset.row;
  if (ARROWS[event.key]) {
    const next = neighbour(row, ...ARROWS[event.key]);
    if (next !== null) focusCell(next);
  } else if (event.key === "Enter" || event.key === " ") {
    openLarge(row);
  } else if (!markByKey(event.key, row)) {
    return;
  }
  event.preventDefault();
});

function markByKey(key, row) {
  if (key === "f" || key === "F") toggleStar(idOf(row));
  else if (/^[0-5]$/.test(key)) rate(idOf(row), +key);
  else return false;
  return true;
}

scroller.addEventListener("scroll", later, { passive: true });
let widthBefore = 0;
new ResizeObserver(() => {
  if (!main.ready) return;
  if (scroller.clientWidth !== widthBefore) {
    widthBefore = scroller.clientWidth;
    redraw();
  } else {
    later();
  }
  if (large.row >= 0) drawStage();
}).observe(scroller);

// ---- the large picture

document.addEventListener("keydown", event => {
  if (!by("large").open || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, pre")) return;
  if (ARROWS[event.key]) move(...ARROWS[event.key]);
  else if (event.key === "c" || event.key === "C") (large.other >= 0 ? endComparison : compare)();
  else if (!markByKey(event.key, large.row)) return;
  event.preventDefault();
});
by("large").addEventListener("close", closeLarge);
by("close").addEventListener("click", () => by("large").close());
for (const [name, dx, dy] of MOVES) by(`go-${name}`).addEventListener("click", () => move(dx, dy));
by("star").addEventListener("click", () => toggleStar(idOf(large.row)));
by("rating").addEventListener("click", event => {
  const chosen = +(event.target.dataset.rating || 0), id = idOf(large.row);
  if (chosen) rate(id, ratingOf(id) === chosen ? 0 : chosen);
});
by("facts").addEventListener("click", event => {
  const { axis, step: by_ } = event.target.dataset;
  if (axis) step(axis, +by_);
});
by("whole").addEventListener("toggle", () => { if (by("whole").open) showRecord(); });
by("compare").addEventListener("click", compare);
by("apart").addEventListener("click", endComparison);
by("beside").addEventListener("click", () => {
  by("beside").setAttribute("aria-pressed", by("beside").getAttribute("aria-pressed") !== "true");
  drawStage();
});
by("divider").addEventListener("input", divide);
by("copy-command").addEventListener("click", event => copyOf(command, event.currentTarget));
by("copy-item").addEventListener("click", event => copyOf(manifestItem, event.currentTarget));
by("copy-link").addEventListener("click", event => toClipboard(location.href, event.currentTarget));

// A finger moves along the row; with a comparison a pointer moves the divider.
let from = null;
by("views").addEventListener("pointerdown", event => { from = [event.clientX, event.clientY]; });
by("views").addEventListener("pointermove", event => {
  if (by("views").className !== "over" || !from) return;
  const box = by("views").getBoundingClientRect();
  by("divider").value = (100 * (event.clientX - box.left)) / box.width;
  divide();
});
addEventListener("pointerup", event => {
  if (from && large.row >= 0 && by("views").className === "one" && event.pointerType === "touch") {
    const [dx, dy] = [event.clientX - from[0], event.clientY - from[1]];
    if (Math.abs(dx) > 48 && Math.abs(dx) > 2 * Math.abs(dy)) move(dx < 0 ? 1 : -1, 0);
  }
  from = null;
});

// ---- the bars

for (const kind of ["grid", "list"]) by(`as-${kind}`).addEventListener("click", () => { view.as = kind; scroller.scrollTo(0, 0); settled(); });
by("words").addEventListener("input", () => { view.words = by("words").value; scroller.scrollTop = 0; settled(); });
by("show").addEventListener("change", () => { view.show = by("show").value; scroller.scrollTop = 0; settled(); });
by("size").addEventListener("input", () => { view.size = +by("size").value; settled(); });
by("save").addEventListener("click", saveIds);
by("link").addEventListener("click", event => toClipboard(location.href, event.currentTarget));
by("options").addEventListener("click", () => {
  const open = by("options").getAttribute("aria-expanded") !== "true";
  by("options").setAttribute("aria-expanded", open);
  document.body.classList.toggle("open", open);
});
document.addEventListener("keydown", event => {
  if (event.key === "/" && !by("large").open && !event.target.matches("input, select, textarea")) {
    event.preventDefault();
    by("words").focus();
  }
});
addEventListener("hashchange", () => {
  if (location.hash.slice(1) === written) return;
  readHash();
  const open = view.open;
  if (by("large").open) by("large").close();
  view.open = open;
  settled();
  openFromHash();
});

look();
