// The view in which the layer enlarges a picture.

const LARGEST = 512; // pixels on the longer side of the result
let photo = null; // what was dropped in, as an ImageBitmap or a canvas

// Draw a picture to begin with: a gradient, edges of all directions, and thin lines.
function examplePicture() {
  const canvas = assign(document.createElement("canvas"), { width: 256, height: 192 }), pen = canvas.getContext("2d");
  const sky = pen.createLinearGradient(0, 0, 0, 192);
  sky.addColorStop(0, "#5a8fc8");
  sky.addColorStop(1, "#f2dcc0");
  const shape = (colour, draw) => { pen.fillStyle = colour; pen.beginPath(); draw(); pen.fill(); };
  shape(sky, () => pen.rect(0, 0, 256, 192));
  shape("#f6f0d8", () => pen.arc(196, 50, 28, 0, 7));
  shape("#47643f", () => { pen.moveTo(0, 192); pen.lineTo(70, 70); pen.lineTo(150, 192); });
  shape("#2f4a3a", () => { pen.moveTo(80, 192); pen.lineTo(160, 100); pen.lineTo(256, 192); });
  shape("#a8442f", () => pen.rect(30, 130, 56, 62));
  pen.strokeStyle = "#222222";
  pen.lineWidth = 3;
  for (const x of [110, 134, 158, 182]) pen.strokeRect(x, 150, 14, 30);
  return canvas;
}

// Return a picture as three grids of numbers in [0, 1], its longer side `side` pixels.
function pixelsOf(source, side) {
  const scale = side / max(source.width, source.height);
  const [width, height] = [source.width, source.height].map((length) => max(1, round(length * scale)));
  const canvas = assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.imageSmoothingQuality = "high";
  pen.drawImage(source, 0, 0, width, height);
  const { data } = pen.getImageData(0, 0, width, height);
  const channel = (c) => Float32Array.from({ length: width * height }, (_, i) => data[4 * i + c] / 255);
  return { width, height, channels: [0, 1, 2].map(channel) };
}

// Enlarge a picture by the layer, each colour by itself; a constant keeps its brightness on average, or vanishes.
function enlarge({ width, height, channels }, layer) {
  const { kernel, stride, dilation, padding } = layer, k = kernel.length;
  const { mean, vanishes } = constantThrough(layer), gain = vanishes ? 1 : 1 / mean;
  const [w, h] = [width, height].map((n) => outputSize(n, k, layer));
  const result = channels.map(() => new Float32Array(w * h));
  for (let i = 0; i < height; i++) for (let a = 0; a < k; a++) {
    const y = i * stride + a * dilation - padding;
    if (y < 0 || y >= h) continue;
    for (let j = 0; j < width; j++) for (let b = 0; b < k; b++) {
      const x = j * stride + b * dilation - padding, weight = gain * kernel[a][b];
      if (x < 0 || x >= w || !weight) continue;
      for (let c = 0; c < 3; c++) result[c][y * w + x] += weight * channels[c][i * width + j];
    }
  }
  return { width: w, height: h, channels: result };
}

// Show a picture on a canvas, every pixel `zoom` pixels wide.
function paintPicture(canvas, { width, height, channels }, zoom) {
  assign(canvas, { width, height });
  canvas.style.width = `${width * zoom}px`;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set([...channels.map((values) => 255 * values[i]), 255], 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Return the longer side of the picture to enlarge, and by how many layers, up to `most`, LARGEST lets it be.
function fitting(most) {
  const grown = (side, layers) => (layers ? grown(outputSize(side, state.k, now.layer), layers - 1) : side);
  let side = 96, layers = most;
  while (grown(side, layers) > LARGEST) {
    side -= 1;
    if (side < 8) [side, layers] = [96, layers - 1];
  }
  return { side, layers };
}

function drawPicture() {
  const { s, t, m, k } = state, panels = $("picture").querySelector(".panels");
  panels.hidden = !t || s === 1;
  if (!t) return say("picture", "A convolution shrinks: choose Transposed.");
  if (s === 1) return say("picture", "Stride 1 enlarges nothing: choose a larger stride.");
  photo ??= examplePicture();
  const { side, layers } = fitting(m);
  const small = pixelsOf(photo, side);
  let large = small;
  for (let i = 0; i < layers; i++) large = enlarge(large, now.layer);
  paintPicture($("small"), small, 2);
  paintPicture($("large"), large, min(2, 560 / max(large.width, large.height)));
  const size = ({ width, height }) => `${height} × ${width}`;
  const title = `enlarged by ${layers > 1 ? `${layers} such layers` : "the layer"}: ${size(large)}`;
  $("smallTitle").textContent = `made small: ${size(small)}`;
  $("largeTitle").textContent = title;
  $("small").ariaLabel = `the picture, ${size(small)} pixels`;
  $("large").ariaLabel = title;
  const { vanishes, even } = constantThrough(now.layer);
  say("picture", `Every colour goes through the kernel above, ${k} × ${k} at stride ${s}`
    + `${vanishes ? "" : ", with its brightness kept"}. The weights that meet have `
    + (even ? "equal sums: no checkerboard." : "unequal sums: look for the checkerboard.")
    + (layers < m ? ` ${m} layers would make more than ${LARGEST} pixels a side.` : ""));
}

// Take a file that was dropped or chosen; say so if it is no picture.
async function takePicture(file) {
  try {
    photo = await createImageBitmap(file);
    notice = "";
  } catch {
    notice = `${file.name} is no picture that this browser can open.`;
  }
  draw();
}

// Add the buttons of the view: a file, the common kernels, those of a trained network, and how many layers.
function makePicture() {
  const place = $("picture").querySelector(".actions"), learned = JSON.parse($("learned").textContent);
  place.innerHTML = `<label class="button">Your picture: choose or drop it here
      <input type="file" accept="image/*"></label>
    <label>kernel <select id="pictureKernel"></select></label>
    <label>layers <select id="m"><option>1</option><option>2</option><option>3</option></select></label>`;
  const choose = $("pictureKernel"), names = ["bilinear", "nearest", "random", "ones", ...keys(learned)];
  choose.append(...names.map((name) => new Option(name in learned ? `learned, ${name}` : name, name)),
    new Option("another", "other"));
  choose.lastChild.disabled = true;
  on(choose, "change", () => {
    const weights = learned[choose.value];
    change(weights ? { k: weights.length, s: 2, p: 1, o: 0, d: 1, w: weights.flat().join() } : { w: choose.value });
  });
  on($("m"), "change", () => change({ m: Number($("m").value) }));
  on(place.querySelector("input"), "change", ({ target }) => {
    const [file] = target.files;
    target.value = ""; // else choosing the same file again would change nothing
    if (file) takePicture(file);
  });
  on($("picture"), "dragover", (event) => event.preventDefault());
  on($("picture"), "drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) takePicture(event.dataTransfer.files[0]);
  });
  learnedName = () => keys(learned).find((name) => learned[name].flat().join() === state.w);
}

let learnedName = () => undefined; // the learned kernel in use

function drawPictureControls() {
  $("m").value = state.m;
  $("pictureKernel").value = learnedName() ?? state.w;
  if ($("pictureKernel").selectedIndex < 0) $("pictureKernel").value = "other";
}
