// ---- marks: favourites and ratings, kept by this browser for this page's address

const MARKS = `runner.gallery ${location.pathname}`, STAR = 8, MOST_RATED = 5;
let marks = new Map();
let kept = true; // whether this browser keeps them; else they are this tab's alone

// Another tab may have changed them, so they are read before each change, and only one entry is changed.
function readMarks() {
  try {
    const found = Object.entries(JSON.parse(localStorage.getItem(MARKS) || "{}"));
    marks = new Map(found.filter(([, mark]) => Number.isInteger(mark) && mark > 0 && mark <= STAR + MOST_RATED));
  } catch { /* no storage here, or not ours: those of this tab */ }
}

function changeMark(id, change) {
  if (kept) readMarks();
  const mark = change(marks.get(id) || 0);
  if (mark) marks.set(id, mark);
  else marks.delete(id);
  try {
    localStorage.setItem(MARKS, JSON.stringify(Object.fromEntries(marks)));
    kept = true;
  } catch {
    kept = false;
    say("This browser doesn't keep them: they are gone when the tab is closed. Save the ids first.");
  }
  marksChanged();
}

const isStarred = id => ((marks.get(id) || 0) & STAR) > 0;
const ratingOf = id => (marks.get(id) || 0) & (STAR - 1);
const toggleStar = id => changeMark(id, mark => mark ^ STAR);
const rate = (id, rating) => changeMark(id, mark => (mark & STAR) | rating);

addEventListener("storage", event => {
  if (kept && (event.key === MARKS || event.key === null)) {
    marks = new Map();
    readMarks();
    marksChanged();
  }
});

// What the choice `show` lets through.
const SHOWN = {
  all: ["everything", () => true],
  favourites: ["favourites", row => isStarred(idOf(row))],
  ...Object.fromEntries([1, 2, 3, 4, 5].map(least => [
    `rated${least}`, [least === 5 ? "rated 5" : `rated ${least} or more`, row => ratingOf(idOf(row)) >= least]])),
  unrated: ["not rated", row => data.states[row] === DONE && !ratingOf(idOf(row))],
  done: ["made", row => data.states[row] === DONE],
  missing: ["not made yet, or gone", row => data.states[row] === MISSING || data.states[row] === GONE],
  failed: ["failed", row => data.states[row] === FAILED],
};

// The ids to save: the favourites, unless the choice is about ratings. Each once, in the manifest's order.
function chosenIds() {
  const passes = SHOWN[view.show.startsWith("rated") ? view.show : "favourites"][1], ids = new Set();
  for (let row = 0; row < data.rows; row++) if (isLoaded(row) && passes(row)) ids.add(idOf(row));
  return [...ids];
}

function saveIds() {
  const ids = chosenIds();
  if (!ids.length) {
    say("No picture is marked yet: F marks the one in hand as a favourite, 1 to 5 rate it.");
    return;
  }
  const link = document.createElement("a"), url = URL.createObjectURL(new Blob([ids.join("\n") + "\n"], { type: "text/plain" }));
  link.href = url;
  link.download = `${document.title || "gallery"}-ids.txt`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
