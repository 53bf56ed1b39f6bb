// Runs the network of model.onnx on pictures, in this browser. settings.json says what it knows.

const LONGEST = 640; // pixels of a side; larger pictures are shrunk, or a phone would run out of memory
const BENEATH = "rgb(124 116 104)"; // transparent pixels get the image mean that the network subtracts

const element = (id) => document.getElementById(id);
const say = (text) => { element("status").textContent = text; };
const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

const canvas = element("picture"), context = canvas.getContext("2d", { willReadFrequently: true });
let settings, network, ort, shown = null; // shown: the picture's pixels and labels

async function load() {
  settings = await (await fetch("settings.json")).json();
  const known = settings.classes.slice(settings.background ? 1 : 0);
  element("classes").textContent = known.join(", ");
  const runtime = new URL(settings.runtime, location.href).href;
  ort = await import(`${runtime}ort.wasm.min.mjs`);
  ort.env.wasm.wasmPaths = runtime;
  if (!crossOriginIsolated) ort.env.wasm.numThreads = 1; // browsers then allow no more
  network = await ort.InferenceSession.create("model.onnx");
}

// Read a file upright, shrink it if it is large, and show what the network sees in it.
async function segment(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return say(`${file.name ?? "This file"} is no picture that this browser can read; try JPEG or PNG.`);
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(scale * side)));
  [canvas.width, canvas.height] = [width, height];
  context.fillStyle = BENEATH;
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  keep(null); // the last picture's labels are not this one's
  element("result").hidden = false;
  say("The network is looking at your picture.");
  await painted();
  const pixels = context.getImageData(0, 0, width, height), count = width * height;
  const image = new Uint8Array(3 * count); // all reds, then all greens, then all blues
  for (let i = 0; i < 3 * count; i++) image[i] = pixels.data[4 * (i % count) + Math.floor(i / count)];
  const start = performance.now();
  const result = await network.run({ image: new ort.Tensor("uint8", image, [1, 3, height, width]) });
  const seconds = (performance.now() - start) / 1000;
  keep({ pixels, labels: result.labels.data, width, height, seconds });
  drawColours();
  const shrunk = scale < 1 ? `, after shrinking your picture to ${width} × ${height} pixels` : "";
  say(`Looking at your picture took ${seconds.toFixed(2)} seconds${shrunk}.`);
}

// Take a result, or none: then there is nothing to colour, list or save.
function keep(result) {
  shown = result;
  for (const control of ["strength", "save"]) element(control).disabled = !shown;
  element("legend").replaceChildren(...(shown ? classRows() : []));
}

const isBackground = (label) => label === 0 && settings.background;

// Return the picture with each object in its colour over grey; strength 0 to 1.
function blend(strength) {
  const { pixels, labels, width, height } = shown;
  const result = new ImageData(new Uint8ClampedArray(pixels.data), width, height);
  labels.forEach((label, i) => {
    if (isBackground(label)) return;
    const [red, green, blue] = pixels.data.subarray(4 * i, 4 * i + 3), grey = 0.3 * red + 0.59 * green + 0.11 * blue;
    settings.colours[label].forEach((value, c) => { result.data[4 * i + c] = grey + strength * (value - grey); });
  });
  return result;
}

function drawColours() {
  context.putImageData(blend(element("strength").value / 100), 0, 0);
}

// Return a row for each class in the picture, by its share of the pixels.
function classRows() {
  const counts = new Map();
  for (const label of shown.labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([label, count]) => {
    const row = document.createElement("li"), [swatch, share] = ["i", "b"].map((tag) => document.createElement(tag));
    if (!isBackground(label)) swatch.style.background = `rgb(${settings.colours[label].join(" ")})`;
    const percent = 100 * count / shown.labels.length;
    share.textContent = percent < 0.1 ? "< 0.1 %" : `${percent.toFixed(1)} %`;
    row.append(swatch, settings.classes[label] + (isBackground(label) ? " (none of these)" : ""), share);
    return row;
  });
}

// Let the link save the colours alone, at the size that the network has seen.
async function save() {
  const { labels, width, height } = shown, mask = new ImageData(width, height);
  labels.forEach((label, i) => mask.data.set([...settings.colours[label], 255], 4 * i));
  const copy = new OffscreenCanvas(width, height);
  copy.getContext("2d").putImageData(mask, 0, 0);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await copy.convertToBlob());
  link.download = "mask.png";
  link.click();
}

async function open(file) {
  element("file").disabled = true;
  try {
    await segment(file);
  } catch (error) {
    say(`The network failed on this picture; a smaller one may work. (${error.message})`);
  }
  element("file").disabled = false;
}

element("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  target.value = ""; // else choosing the same file again would change nothing
  if (file) open(file);
});
element("strength").addEventListener("input", drawColours);
element("save").addEventListener("click", save);
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  addEventListener(name, (event) => {
    event.preventDefault(); // else the browser would open the picture itself
    element("drop").classList.toggle("over", over);
    const file = name === "drop" && event.dataTransfer.files[0];
    if (!file || !network) return; // the page says that the network is loading, or why it is not there
    if (element("file").disabled) say("Please wait, the network is busy; then drop the picture again.");
    else open(file);
  });
}

async function start() {
  try {
    await load();
  } catch (error) {
    return say(`The network could not be loaded; reload the page, or try another browser. (${error.message})`);
  }
  const content = (answer) => (answer.ok ? answer.blob() : null);
  const example = settings.example && await fetch(settings.example).then(content).catch(() => null);
  element("file").disabled = false;
  say("The network is ready.");
  if (example) await open(example);
}

await start();
export const lastResult = () => shown; // for scripts that drive the page
