// What the page does in the browser itself: keys, its address, and waiting for what Gradio has yet to draw.
window.runnerPage = (() => {
  const PATIENCE = 30000; // ms
  const seen = part => part && part.offsetParent !== null;

  document.addEventListener("keydown", event => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const button = [...document.querySelectorAll("button.make")].find(seen);
    if (!button || button.disabled) return;
    event.preventDefault();
    event.stopPropagation();
    button.click();
  }, true);

  // The address names the run that is shown, so that a reload finds it again.
  const asked = () => new URL(location.href).searchParams.get("run") || "";
  const name = run => {
    if (!run) return;
    const address = new URL(location.href);
    address.searchParams.set("run", run);
    history.replaceState(history.state, "", address);
  };

  // After a press: to the first field that is wrong, or to what is said of the run.
  const show = kind => requestAnimationFrame(() => {
    const tab = document.getElementById(kind);
    const field = tab && tab.querySelector(".wrong-field :is(input, textarea):not([type=range])");
    if (field) field.focus({ preventScroll: true });
    const part = tab && (tab.querySelector(".wrong-field") || tab.querySelector(".how-far"));
    if (part) part.scrollIntoView({ block: "nearest" });
  });

  // Gradio's editor loses a picture that is given to it before it has drawn its two canvases.
  const drawn = async (kind, file) => {
    const begun = Date.now();
    const canvases = () => document.querySelectorAll(`#${kind} :is(.pixi-target, .pixi-target-crop) canvas`).length;
    while (file && canvases() < 2 && Date.now() - begun < PATIENCE) await new Promise(go => setTimeout(go, 50));
    return file;
  };

  return { asked, name, show, drawn };
})();
