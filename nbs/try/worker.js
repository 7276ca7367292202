// Runs the networks of the page "Try it", off the page's own thread, with ONNX Runtime Web from the folder ort/ beside this file.
"use strict";
let runtime, provider;
const sessions = new Map();

async function start(want) {
  provider = want;
  importScripts(want === "webgpu" ? "ort/ort.webgpu.min.js" : "ort/ort.wasm.min.js");
  runtime = self.ort;
  runtime.env.wasm.wasmPaths = new URL("ort/", self.location.href).href;
  runtime.env.wasm.numThreads = 1;   // more threads need headers that a static host does not send
  runtime.env.logLevel = "error";
}

async function session(file) {
  if (!sessions.has(file)) {
    const answer = await fetch(file);
    if (!answer.ok) throw new Error(`${file}: ${answer.status}`);
    const bytes = new Uint8Array(await answer.arrayBuffer());
    sessions.set(file, await runtime.InferenceSession.create(bytes, {executionProviders: [provider]}));
  }
  return sessions.get(file);
}

// The part of an RGBA picture from (x, y), as [1,3,h,w] in 0..1.
function cut({data, width}, x, y, w, h) {
  const values = new Float32Array(3 * w * h);
  for (let row = 0; row < h; row++)
    for (let col = 0; col < w; col++) {
      const from = 4 * ((y + row) * width + x + col), to = row * w + col;
      for (let c = 0; c < 3; c++) values[c * w * h + to] = data[from + c] / 255;
    }
  return values;
}

// Enlarge a picture in tiles: each is given `margin` more pixels than it answers for, as far as the network looks, so no seam shows.
async function enlarge({id, file, picture, scale, margin, tile}) {
  const net = await session(file), {width, height} = picture;
  const out = new Uint8ClampedArray(4 * width * height * scale * scale).fill(255);
  const across = Math.ceil(width / tile), down = Math.ceil(height / tile);
  let ms = 0;
  for (let k = 0; k < across * down; k++) {
    const x = k % across * tile, y = Math.floor(k / across) * tile, right = Math.min(width, x + tile), bottom = Math.min(height, y + tile);
    const x0 = Math.max(0, x - margin), y0 = Math.max(0, y - margin), x1 = Math.min(width, right + margin), y1 = Math.min(height, bottom + margin);
    const w = x1 - x0, h = y1 - y0, begun = performance.now();
    const input = new runtime.Tensor("float32", cut(picture, x0, y0, w, h), [1, 3, h, w]);
    const sr = (await net.run({lr: input})).sr, values = await sr.getData(), plane = w * h * scale * scale;
    ms += performance.now() - begun;
    for (let row = (y - y0) * scale; row < (bottom - y0) * scale; row++)
      for (let col = (x - x0) * scale; col < (right - x0) * scale; col++) {
        const to = 4 * ((row + y0 * scale) * width * scale + col + x0 * scale), from = row * w * scale + col;
        for (let c = 0; c < 3; c++) out[to + c] = Math.round(255 * values[c * plane + from]);
      }
    sr.dispose?.();
    self.postMessage({id, file, done: (k + 1) / (across * down)});
  }
  self.postMessage({id, file, ms, picture: {data: out, width: width * scale, height: height * scale}}, [out.buffer]);
}

self.onmessage = async ({data}) => {
  try {
    if (data.start) { await start(data.start); await session(data.file); self.postMessage({ready: provider}); }
    else await enlarge(data);
  } catch (error) { self.postMessage({id: data.id, file: data.file, failed: String(error?.message ?? error)}); }
};
