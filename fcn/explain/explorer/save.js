// Saving what is shown: the stamps as SVG or as an animated GIF, and a line that embeds the page.

// Return the input, the kernel and the sum of the first stamps as cells: {x, y, side, fill, text, soft}.
function scene(step) {
  const side = 36, gap = 28, top = 28, { layer, size, flat } = now, cells = [], titles = [];
  let left = 8, bottom = 0;
  const place = (title, rows, limit, soft = () => false) => {
    titles.push({ x: left, y: top - 10, text: title });
    rows.forEach((row, r) => row.forEach((value, c) => {
      const text = short(value, 2);
      const place = { x: left + c * side, y: top + r * side, side: side - 1 };
      cells.push({ ...place, fill: css(shade(value, limit)), text, soft: soft(r, c) });
    }));
    left += max(rows[0].length * side, 9 * title.length) + gap;
    bottom = max(bottom, top + rows.length * side);
  };
  place("input x", layer.input, most(flat.input), (r, c) => r * state.n + c >= step);
  place("kernel w", layer.kernel, most(flat.weight));
  const sum = frameOf(step);
  const title = step < state.n ** 2 ? `the sum of ${count(step, "stamp")}` : `output y, ${square(size)}`;
  place(title, sum.values, most(flat.output), (r, c) => !sum.inside(r, c));
  return { cells, titles, width: left - gap + 8, height: bottom + 8 };
}

const inkOf = () => getComputedStyle(document.body).color;
const groundOf = () => getComputedStyle(document.body).backgroundColor;

function svgOf({ cells, titles, width, height }) {
  const text = ({ x, y, text: words, size = 12, anchor = "start", opacity = 1 }) =>
    `<text x="${x}" y="${y}" font-size="${size}" text-anchor="${anchor}" opacity="${opacity}">${words}</text>`;
  const body = cells.map(({ x, y, side, fill: colour, text: words, soft }) =>
    `<rect x="${x}" y="${y}" width="${side}" height="${side}" fill="${colour}" opacity="${soft ? 0.35 : 1}"/>`
    + text({ x: x + side / 2, y: y + side / 2 + 4, text: words, anchor: "middle", opacity: soft ? 0.5 : 1 }));
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" `
    + `height="${height}" font-family="sans-serif" fill="${inkOf()}">
<title>${$("summary").textContent}</title><rect width="${width}" height="${height}" fill="${groundOf()}"/>
${[...titles.map(text), ...body].join("\n")}
</svg>`;
}

// Draw a scene on a canvas of a size, which holds it at a scale; return its pixels.
function frame({ cells, titles }, width, height, scale) {
  const canvas = assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  assign(pen, { fillStyle: groundOf(), font: "13px sans-serif" });
  pen.fillRect(0, 0, width, height);
  pen.fillStyle = inkOf();
  pen.scale(scale, scale);
  for (const { x, y, text } of titles) pen.fillText(text, x, y);
  assign(pen, { textAlign: "center", textBaseline: "middle", font: "12px sans-serif" });
  for (const { x, y, side, fill: colour, text, soft } of cells) {
    assign(pen, { globalAlpha: soft ? 0.35 : 1, fillStyle: colour });
    pen.fillRect(x, y, side, side);
    pen.fillStyle = inkOf();
    pen.fillText(text, x + side / 2, y + side / 2);
  }
  return pen.getImageData(0, 0, width, height).data;
}

/**
 * Return an animated GIF that repeats for ever, as bytes.
 *
 * frames: RGBA pixels of equal size; delays: of each frame, in hundredths of a second. Colours are
 * rounded to 15 bits, and the 256 most frequent ones of all frames are the palette.
 */
function gif(frames, width, height, delays) {
  const rounded = (data, i) => (data[i] >> 3) << 10 | (data[i + 1] >> 3) << 5 | data[i + 2] >> 3;
  const counts = new Uint32Array(2 ** 15);
  for (const data of frames) for (let i = 0; i < data.length; i += 4) counts[rounded(data, i)] += 1;
  const found = [...counts.keys()].filter((colour) => counts[colour]);
  const palette = found.sort((a, b) => counts[b] - counts[a]).slice(0, 256);
  const parts = (colour) => [colour >> 10, colour >> 5 & 31, colour & 31];
  const near = new Map(palette.map((colour, i) => [colour, i]));
  const nearest = (colour) => {
    if (!near.has(colour)) {
      const to = parts(colour), distance = (sum, part, i) => sum + (part - to[i]) ** 2;
      const far = palette.map((other) => parts(other).reduce(distance, 0));
      near.set(colour, far.indexOf(min(...far)));
    }
    return near.get(colour);
  };
  const bytes = [], word = (number) => bytes.push(number & 255, number >> 8);
  const text = (letters) => bytes.push(...letters.split("").map((letter) => letter.charCodeAt(0)));
  text("GIF89a");
  word(width);
  word(height);
  bytes.push(0xf7, 0, 0); // a palette of 256 colours
  for (let i = 0; i < 256; i++) bytes.push(...parts(palette[i] ?? 0).map((part) => part << 3 | part >> 2));
  bytes.push(0x21, 0xff, 11);
  text("NETSCAPE2.0");
  bytes.push(3, 1, 0, 0, 0); // repeat for ever
  frames.forEach((data, at) => {
    bytes.push(0x21, 0xf9, 4, 0);
    word(delays[at]);
    bytes.push(0, 0, 0x2c, 0, 0, 0, 0);
    word(width);
    word(height);
    bytes.push(0, 8);
    const packed = lzw(Uint8Array.from({ length: width * height }, (_, i) => nearest(rounded(data, 4 * i))));
    for (let i = 0; i < packed.length; i += 255) {
      const block = packed.slice(i, i + 255);
      bytes.push(block.length, ...block);
    }
    bytes.push(0);
  });
  bytes.push(0x3b);
  return Uint8Array.from(bytes);
}

// Compress bytes as GIF does: codes of 9 to 12 bits, a table of runs that is begun anew when it is full.
function lzw(pixels) {
  const CLEAR = 256, END = 257, packed = [];
  let table = new Map(), next = 258, bits = 9, held = 0, length = 0;
  const emit = (code) => {
    held |= code << length;
    for (length += bits; length >= 8; length -= 8, held >>>= 8) packed.push(held & 255);
  };
  emit(CLEAR);
  let run = pixels[0];
  for (const pixel of pixels.subarray(1)) {
    const key = run << 8 | pixel;
    if (table.has(key)) {
      run = table.get(key);
      continue;
    }
    emit(run);
    if (next === 4096) {
      emit(CLEAR);
      [table, next, bits] = [new Map(), 258, 9];
    } else {
      if (next === 1 << bits) bits += 1;
      table.set(key, next++);
    }
    run = pixel;
  }
  emit(run);
  emit(END);
  if (length) packed.push(held & 255);
  return packed;
}

const LONGEST = 1200; // pixels of a side of the animation
const MOST_STAMPS = 20; // shown after one another; of more, every few at once

function animation() {
  const all = state.n ** 2, last = min(all, MOST_STAMPS);
  const scenes = Array.from({ length: last + 1 }, (_, i) => scene(round(i * all / last)));
  const sides = ["width", "height"].map((side) => max(...scenes.map((one) => one[side])));
  const scale = min(1, LONGEST / max(...sides)), [width, height] = sides.map((side) => floor(side * scale));
  const frames = scenes.map((one) => frame(one, width, height, scale));
  return gif(frames, width, height, frames.map((_, i) => (i === last ? 250 : 80)));
}

function embedLine() {
  const page = location.protocol === "file:" ? "explorer.html" : location.href.split("#")[0];
  const rest = 'title="Transposed convolution" width="900" height="540"';
  return `<iframe src="${page}${address()}&embed=stamps" ${rest}></iframe>`;
}

function download(name, content, type) {
  const href = URL.createObjectURL(new Blob([content], { type }));
  const link = assign(document.createElement("a"), { download: name, href });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function makeSaving() {
  const place = $("stamps").querySelector(".actions");
  const labels = ["Save as SVG", "Save as GIF", "Copy a line to embed this"];
  place.innerHTML = labels.map((label) => `<button>${label}</button>`).join("");
  const [svg, animated, embed] = place.children;
  on(svg, "click", () => download("transposed-convolution.svg", svgOf(scene(stampedCount())), "image/svg+xml"));
  on(animated, "click", () => download("transposed-convolution.gif", animation(), "image/gif"));
  on(embed, "click", () => copy(embedLine(), embed));
}
