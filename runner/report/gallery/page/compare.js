// ---- compare: two pictures, one over the other with a divider, or side by side

function shot(row, box, letter, other) {
  const made = element("div", "view"), reason = why(row);
  made.append(reason ? element("p", "why", reason) : picture(newImage(), row, box, true));
  if (letter) made.append(element("span", "letter", `${letter}: ${different(row, other)}`));
  return made;
}

// What tells a row from another one.
function different(row, other) {
  const found = data.columns.filter(column => data.codes[column.number][row] !== data.codes[column.number][other]);
  const words = found.map(column => `${column.short} ${valueOf(row, column) || "none"}`).join(", ");
  return words || "the same";
}

function stageBox(count) {
  const style = getComputedStyle(by("views")), pad = 2 * parseFloat(style.paddingLeft);
  const width = by("views").clientWidth - pad, height = by("views").clientHeight - pad;
  const upright = width < height;
  return [Math.max(16, count === 2 && !upright ? width / 2 - GAP : width), Math.max(16, count === 2 && upright ? height / 2 - GAP : height)];
}

function drawStage() {
  const row = large.row, other = large.other, views = by("views");
  by("split").hidden = other < 0;
  const beside = other >= 0 && by("beside").getAttribute("aria-pressed") === "true";
  views.className = other < 0 ? "one" : beside ? "beside" : "over";
  by("divider").disabled = beside;
  const box = stageBox(beside ? 2 : 1);
  if (other < 0) views.replaceChildren(shot(row, box));
  else views.replaceChildren(shot(other, box, "A", row), shot(row, box, "B", other));
  divide();
}

function divide() {
  const views = by("views"), share = by("divider").value;
  if (views.className !== "over") return;
  views.lastChild.style.clipPath = `inset(0 0 0 ${share}%)`;
  views.firstChild.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
  views.querySelector(".line")?.remove();
  const line = element("i", "line");
  line.style.left = `${share}%`;
  views.insertBefore(line, views.lastChild);
  by("divider").setAttribute("aria-valuetext", `${share}% A, ${100 - share}% B`);
}
