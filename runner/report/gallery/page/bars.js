// ---- bars: the choices above the pictures

const MOST_OPTIONS = 400, LONGEST_OPTION = 90;
const short = text => (text.length > LONGEST_OPTION ? `${text.slice(0, LONGEST_OPTION)}…` : text || "none");

function option(value, text, chosen) {
  const made = element("option", "", text);
  made.value = value;
  made.selected = chosen;
  return made;
}

function choice(name, options, change) {
  const label = element("label", "choice"), select = document.createElement("select");
  select.append(...options);
  select.dataset.axis = name;
  select.addEventListener("change", () => change(select.value));
  label.append(element("span", "", name), select);
  return label;
}

// The values around the chosen one, where there are too many for a menu.
function valueOptions(column, chosen) {
  const start = Math.max(0, Math.min(Math.max(0, chosen) - MOST_OPTIONS / 2, column.values.length - MOST_OPTIONS));
  const some = column.values.slice(start, start + MOST_OPTIONS);
  const made = some.map((value, place) => option(`=${value}`, short(value), start + place === chosen));
  const left = column.values.length - some.length;
  if (left > 0) {
    made.push(option("", `and ${left.toLocaleString()} more: use the arrows or the filter`, false));
    made[made.length - 1].disabled = true;
  }
  return made;
}

function axisChoice(column) {
  const chosen = selected(column), grid = view.as === "grid", side = grid && view.side.includes(column.name);
  const first = grid ? option("side", "all side by side", side) : option("all", "all", chosen < 0);
  const made = choice(column.name, [first, ...valueOptions(column, chosen)], value => {
    view.side = view.side.filter(name => name !== column.name);
    if (value === "side") view.side.push(column.name);
    if (value.startsWith("=")) view.only[column.name] = value.slice(1);
    else delete view.only[column.name];
    settled();
  });
  if (!side) {
    for (const [sign, words, by_] of [["‹", "before", -1], ["›", "after", 1]]) {
      const button = element("button", "step", sign), next = chosen + by_;
      button.type = "button";
      button.disabled = next < 0 || next >= column.values.length;
      button.setAttribute("aria-label", `${column.name}: the value ${words}`);
      button.addEventListener("click", () => {
        view.only[column.name] = column.values[next];
        settled();
        const again = by("axes").querySelector(`[aria-label="${CSS.escape(button.getAttribute("aria-label"))}"]`);
        (again && !again.disabled ? again : by("axes").querySelector(`select[data-axis="${CSS.escape(column.name)}"]`))?.focus();
      });
      made.append(button);
    }
  }
  return made;
}

function place(which, other) {
  const options = swept().map(column => option(column.name, column.name, column.name === view[which]));
  const made = choice(which === "rows" ? "Rows" : "Columns", options, name => {
    if (view[other] === name) view[other] = view[which];
    view[which] = name;
    settled();
  });
  made.classList.add("place");
  return made;
}

function drawBars() {
  const focused = document.activeElement?.dataset?.axis, made = [];
  if (view.as === "grid" && swept().length > 1) {
    const swap = element("button", "step", "⇄");
    swap.type = "button";
    swap.setAttribute("aria-label", "Exchange rows and columns");
    swap.addEventListener("click", () => {
      [view.rows, view.columns] = [view.columns, view.rows];
      settled();
      by("axes").querySelector("[aria-label='Exchange rows and columns']").focus();
    });
    made.push(place("rows", "columns"), swap, place("columns", "rows"));
  }
  by("axes").replaceChildren(...made, ...others().map(axisChoice));
  if (focused) by("axes").querySelector(`select[data-axis="${CSS.escape(focused)}"]`)?.focus();
  for (const kind of ["grid", "list"]) by(`as-${kind}`).setAttribute("aria-pressed", view.as === kind);
  by("as-grid").disabled = !swept().length;
  by("show").replaceChildren(...Object.entries(SHOWN).map(([key, [text]]) => option(key, text, key === view.show)));
  if (by("words").value !== view.words) by("words").value = view.words;
  by("size").value = view.size;
  drawSave();
}

function drawSave() {
  const count = chosenIds().length, kind = view.show.startsWith("rated") ? SHOWN[view.show][0] : "favourites";
  by("save").textContent = `Save ${count.toLocaleString()} ${kind}`;
}

const LIVE = 60000; // ms without anything new, after which a run seems to have ended early

function drawCounts() {
  const { state } = data, loaded = data.pieces.filter(Boolean).length, [waiting, , failed, gone] = state.counts;
  const made = state.rows - waiting, whole = `${state.rows.toLocaleString()} ${state.rows === 1 ? "item" : "items"}`;
  const filtered = view.words || view.show !== "all" || view.as === "grid" || Object.keys(view.only).length;
  const words = [
    filtered && layout.shown !== state.rows ? `${layout.shown.toLocaleString()} of ${whole}` : whole,
    waiting && `${made.toLocaleString()} made, ${waiting.toLocaleString()} to go`,
    failed && `${failed.toLocaleString()} failed`, gone && `${gone.toLocaleString()} missing`,
    state.rows > state.wanted && `${(state.rows - state.wanted).toLocaleString()} no longer in the manifest`,
    state.running && (performance.now() - main.changed < LIVE ? "the run goes on" : "nothing new for a while"),
    loaded < state.items.length && "loading",
  ];
  const text = words.filter(Boolean).join(" · ");
  if (by("counts").textContent !== text) by("counts").textContent = text;
  const common = Object.entries(data.common).filter(([name]) => name !== "prompt").map(([name, value]) => `${name} ${value}`);
  by("counts").title = common.length ? `All share: ${common.join(" · ")}` : "";
  by("nothing").hidden = layout.shown > 0 || loaded < state.items.length;
  by("nothing").textContent = state.rows ? "No picture is left by these choices." : "There are no pictures yet.";
}
