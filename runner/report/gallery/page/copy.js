// ---- copy: the command and the manifest's item that make a picture again

const SKIPPED = ["number", "parts", "axes", "init_sha256", "mask_sha256", "fixed_code", "embeddings", "loras", "model", "prompt"];
const COMPILERS = { none: "false", inductor: "true", openvino: "openvino" };
const FIGURE = /^\u0001(-?\d+)$/;

async function toClipboard(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Some browsers give pages that were opened from a file no clipboard.
    const box = element("textarea", "", text);
    (by("large").open ? by("large") : document.body).append(box);
    box.select();
    done = document.execCommand("copy");
    box.remove();
  }
  const label = button.dataset.label || button.textContent;
  button.dataset.label = label;
  button.textContent = done ? "Copied" : "Not allowed";
  setTimeout(() => { button.textContent = label; }, 1200);
}

const quoted = text => `'${text.replaceAll("'", "'\\''")}'`;

// Where the run folder is: a page that was opened from a file knows it, one from a server what the run was told.
function folder() {
  if (location.protocol !== "file:") return data.state.folder;
  return decodeURIComponent(location.pathname).replace(/\/[^/]*$/, "") || "/";
}

// Takes the record out of the ledger and runs it as a file of its own, beside the ledger, since its paths are relative.
function command(record) {
  const place = folder(), run = record.run || {}, settings = [];
  if (typeof run.precision === "string") settings.push(`precision=${run.precision}`);
  if (Number.isInteger(run.unet_bs)) settings.push(`unet_bs=${run.unet_bs}`);
  if (run.device === "cpu") settings.push("device=cpu"); // auto takes a card where there is one
  if (run.compile in COMPILERS && run.compile !== "none") settings.push(`compile=${COMPILERS[run.compile]}`);
  const ledger = quoted(`${place}/records.jsonl`), alone = quoted(`${place}/again.jsonl`);
  const words = ["runner run", alone, `out=${quoted(`${place}-again`)}`, ...settings.map(each => (/^[\w.=-]+$/.test(each) ? each : quoted(each)))];
  return `grep -F ${quoted(`"id":"${record.id}"`)} ${ledger} | tail -n 1 > ${alone} && ${words.join(" ")}`;
}

// A value as YAML, of which JSON is a part. What can't be seen is escaped, and numbers stay exact.
function yaml(value) {
  if (typeof value === "string" && FIGURE.test(value)) return value.slice(1);
  if (Array.isArray(value)) return `[${value.map(yaml).join(", ")}]`;
  if (value && typeof value === "object") return `{${Object.entries(value).map(([key, each]) => `${yamlKey(key)}: ${yaml(each)}`).join(", ")}}`;
  const text = JSON.stringify(value);
  return text.replace(/[\u007f-\u009f\u2028\u2029\ufeff\ud800-\udfff]/g, mark => {
    const code = mark.charCodeAt(0);
    return code >= 0xd800 && code < 0xe000 ? mark : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

const yamlKey = key => (/^[A-Za-z][A-Za-z0-9_]*$/.test(key) && !/^(y|n|yes|no|on|off|true|false|null)$/i.test(key) ? key : yaml(key));

// The prompt as a text that is read as the item's parts.
function promptItem(item) {
  const { prompt, parts } = item;
  const plain = Array.isArray(parts) && parts.length === 1 && parts[0].text === prompt && item.prompt_syntax !== "a1111";
  return plain && prompt.includes(":") ? { text: prompt, weighted: false } : prompt;
}

// What stands below `include:` in a manifest; what an item alone can't say is a comment above it.
function manifestItem(record) {
  const item = record.item || {}, notes = [];
  const wish = { prompt: promptItem(item) };
  for (const [key, value] of Object.entries(item)) if (!SKIPPED.includes(key) && value !== null && value !== "") wish[key] = value;
  const tagged = item.prompt_syntax === "a1111" ? String(item.prompt) : "";
  const loras = Object.entries(item.loras || {}).filter(([name]) => !tagged.includes(`<lora:${name}`));
  if (loras.length) wish.loras = Object.fromEntries(loras.map(([name, { unet, text }]) => [name, unet === text ? unet : { unet, text }]));
  for (const kind of ["loras", "embeddings"]) for (const [name, entry] of Object.entries(item[kind] || {})) {
    notes.push(`# needs under ${kind}: ${yamlKey(name)}: ${yaml(entry.path ?? "")}`);
  }
  if (item.axes && "model" in item.axes) wish.model = item.model;
  else if (record.model?.name) notes.push(`# made by the model ${yaml(record.model.name)}`);
  if (item.fixed_code != null) notes.push(`# begins with the noise of seed ${yaml(item.fixed_code)} (fixed_code)`);
  return [...notes, `- ${yaml(wish)}`].join("\n") + "\n";
}
