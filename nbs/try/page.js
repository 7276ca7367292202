// The page "Try it": a photo, four networks, a wipe between any two.  Nothing leaves the page.
"use strict";
document.querySelectorAll(".srd-try").forEach(async root => {
  const $ = name => root.querySelector(`[data-part=${name}]`);
  const FOLDER = root.dataset.folder, ORIGINAL = "original", BICUBIC = "bicubic", MOST = 1200 * 900;
  const networks = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const {scale, margin} = networks, titles = new Map([[BICUBIC, "bicubic"], ...networks.networks.map(n => [n.file, n.title]), [ORIGINAL, "the photo itself"]]);
  let photo = null, lr = null, truth = null, worker = null, ready = null, run = 0;
  const results = new Map();   // what enlarged → {picture, ms, psnr}
  root.srdTry = {results, get name() { return photo?.name; }, get lr() { return lr; }, get truth() { return truth; }, get busy() { return root.getAttribute("aria-busy") === "true"; }};

  const say = text => { $("status").textContent = text; };

  // ---- pictures: {data: RGBA, width, height}

  // Keys' cubic kernel; enlarging it has four taps, reducing it is stretched, as MATLAB's imresize does; at the border the rest counts
  const keys = t => (t = Math.abs(t), t <= 1 ? 1.5 * t ** 3 - 2.5 * t ** 2 + 1 : t < 2 ? -.5 * t ** 3 + 2.5 * t ** 2 - 4 * t + 2 : 0);
  function taps(from, to) {
    const step = from / to, wide = Math.max(1, step), rows = [];
    for (let i = 0; i < to; i++) {
      const centre = (i + .5) * step - .5, first = Math.max(0, Math.ceil(centre - 2 * wide)), last = Math.min(from - 1, Math.floor(centre + 2 * wide));
      const weights = [];
      for (let j = first; j <= last; j++) weights.push(keys((j - centre) / wide));
      const sum = weights.reduce((a, b) => a + b);
      rows.push([first, weights.map(w => w / sum)]);
    }
    return rows;
  }
  function resize({data, width, height}, w, h) {
    const half = new Float32Array(3 * w * height), out = new Uint8ClampedArray(4 * w * h).fill(255), across = taps(width, w), down = taps(height, h);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < w; x++) {
        const [first, weights] = across[x];
        for (let c = 0; c < 3; c++) {
          let sum = 0;
          for (let k = 0; k < weights.length; k++) sum += weights[k] * data[4 * (y * width + first + k) + c];
          half[3 * (y * w + x) + c] = sum;
        }
      }
    for (let y = 0; y < h; y++) {
      const [first, weights] = down[y];
      for (let i = 0; i < 3 * w; i++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * half[3 * (first + k) * w + i];
        out[4 * (y * w + (i / 3 | 0)) + i % 3] = Math.round(sum);
      }
    }
    return {data: out, width: w, height: h};
  }

  // PSNR of the colours, without `scale` pixels at the border
  function psnr(a, b) {
    let sum = 0, n = 0;
    for (let y = scale; y < a.height - scale; y++)
      for (let x = scale; x < a.width - scale; x++, n += 3)
        for (let c = 0; c < 3; c++) { const at = 4 * (y * a.width + x) + c; sum += (a.data[at] - b.data[at]) ** 2; }
    return sum ? 10 * Math.log10(255 ** 2 * n / sum) : Infinity;
  }

  // the middle of a photo, an even number of pixels each way
  async function read(blob) {
    const bitmap = await createImageBitmap(blob);
    let {width, height} = bitmap;
    const size = `${width} × ${height}`, shrink = $("whole").checked ? 1 : Math.min(1, Math.sqrt(MOST / (width * height)));
    const w = Math.max(16, Math.floor(width * shrink / scale) * scale), h = Math.max(16, Math.floor(height * shrink / scale) * scale);
    if (width < 16 || height < 16) throw new Error(`a picture of ${size} pixels is too small; take one of at least 16 × 16`);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [w, h];
    const pen = canvas.getContext("2d", {willReadFrequently: true});
    pen.fillStyle = "#fff"; pen.fillRect(0, 0, w, h);   // under what is transparent
    pen.drawImage(bitmap, -Math.floor((width - w) / 2), -Math.floor((height - h) / 2));
    const {data} = pen.getImageData(0, 0, w, h);
    return {picture: {data, width: w, height: h}, size, part: w * h < .98 * width * height ? `, the middle ${w} × ${h} of it` : ""};
  }

  // ---- the runtime

  const simd = () => typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]));
  async function gpu() { try { return Boolean(await navigator.gpu?.requestAdapter()); } catch { return false; } }

  const obstacle = () =>
    location.protocol === "file:" ? "This page was opened as a file, and a browser then lets it load no network. Serve the folder: python -m http.server" :
    typeof Worker === "undefined" ? "This browser has no workers, so the networks cannot run in it; bicubic can." :
    !simd() ? "This browser has no WebAssembly with SIMD, so the networks cannot run in it; bicubic can. Any browser of 2023 or later has it." : "";

  function launch(provider) {
    return new Promise((done, fail) => {
      const made = new Worker(FOLDER + "worker.js");
      made.onerror = event => { event.preventDefault(); made.terminate(); fail(new Error(event.message || "the worker did not start")); };
      made.onmessage = ({data}) => data.ready ? done(made) : (made.terminate(), fail(new Error(data.failed)));
      made.postMessage({start: provider, file: networks.networks[0].file});
    });
  }

  async function prepare() {
    const wanted = $("engine").value, fast = wanted !== "wasm" && await gpu();
    if (wanted === "webgpu" && !fast) throw new Error("this browser offers no WebGPU; choose another way to compute");
    for (const provider of fast ? ["webgpu", ...(wanted === "auto" ? ["wasm"] : [])] : ["wasm"]) {
      say(provider === "webgpu" ? "Loading ONNX Runtime Web for the GPU: once, about 27 MB before compression…" : "Loading ONNX Runtime Web: once, about 14 MB before compression…");
      try {
        const made = await launch(provider);
        made.provider = provider;
        return made;
      } catch (error) {
        if (provider === "wasm" || wanted === "webgpu") {
          const found = await fetch(FOLDER + "ort/ort.wasm.min.js", {method: "HEAD"}).then(answer => answer.ok, () => false);
          throw new Error(found ? `ONNX Runtime Web did not start (${error.message})` : "this copy of the site was built without ONNX Runtime Web");
        }
      }
    }
  }

  // enlarge `lr` with one network; null when another photo was given meanwhile
  function enlarge(file, mine) {
    return new Promise((done, fail) => {
      worker.onmessage = ({data}) => {
        if (data.id !== mine) return;
        if (data.failed) fail(new Error(data.failed));
        else if (data.picture) done(data);
        else if (mine === run) { say(`${titles.get(file)}: ${Math.round(100 * data.done)} %`); $("progress").value = data.done; }
      };
      worker.postMessage({id: mine, file, picture: lr, scale, margin, tile: worker.provider === "webgpu" ? 256 : 128});
    });
  }

  // ---- one photo through all of them

  async function work() {
    if (!photo) return;
    const mine = ++run;
    root.setAttribute("aria-busy", "true");
    if (worker?.busy) { worker.terminate(); worker = null; }
    results.clear();
    try {
      const {picture, size, part} = await read(photo.blob);
      if (mine !== run) return;
      truth = $("truth").checked ? picture : null;
      lr = truth ? resize(picture, picture.width / scale, picture.height / scale) : picture;
      const begun = performance.now(), up = resize(lr, lr.width * scale, lr.height * scale);
      note(BICUBIC, up, performance.now() - begun);
      if (truth) note(ORIGINAL, truth, null);
      choices();
      centre();
      if (mine === 1) $("status").scrollIntoView({block: "start"});
      if (obstacle()) return say(obstacle());
      if (worker && !["auto", worker.provider].includes($("engine").value)) { worker.terminate(); worker = null; }
      if (!worker) worker = await prepare();
      if (mine !== run) return;
      worker.busy = true;
      $("progress").hidden = false;
      const order = [...titles.keys()].filter(file => file.endsWith(".onnx"));
      const seen = [$("left").value, $("right").value];
      order.sort((a, b) => seen.includes(b) - seen.includes(a));   // what is looked at comes first
      for (const file of order) {
        const {picture: sr, ms} = await enlarge(file, mine);
        if (mine !== run) return;
        note(file, sr, ms);
        draw();
      }
      worker.busy = false;
      const by = worker.provider === "webgpu" ? "the GPU, by WebGPU" : "the processor, by WebAssembly on one thread";
      say(`${photo.name}: ${size} pixels${part}. Four networks enlarged ${lr.width} × ${lr.height} to ${lr.width * scale} × ${lr.height * scale}, on ${by}.`);
    } catch (error) {
      if (mine !== run) return;
      worker?.terminate(); worker = null;
      say(`That did not work: ${error.message}.`);
    } finally {
      if (mine === run) { root.setAttribute("aria-busy", "false"); $("progress").hidden = true; }
    }
  }

  function note(name, picture, ms) {
    results.set(name, {picture, ms, psnr: truth && name !== ORIGINAL ? psnr(picture, truth) : null});
    for (const row of root.querySelectorAll("tbody tr")) {
      const {ms, psnr} = results.get(row.dataset.name) ?? {};
      row.cells[1].textContent = ms == null ? "" : Math.round(ms).toLocaleString("en");
      row.cells[2].textContent = psnr == null ? "" : psnr.toFixed(2);
    }
    if (truth) $("note").textContent = "PSNR: of the colours, against your photo, without two pixels at the border.";
    else $("note").textContent = "No PSNR: nobody knows the sharp picture.";
  }

  // ---- what is looked at

  function choices() {
    for (const side of ["left", "right"])
      for (const option of $(side).options) if (option.value === ORIGINAL) {
        option.disabled = !truth;
        if (!truth && option.selected) $(side).value = networks.networks[0].file;
      }
  }

  const whole = () => results.get(BICUBIC)?.picture;
  function view() {   // the crop, in pixels of the enlarged picture
    const {width, height} = whole(), zoom = Number($("zoom").value), stage = $("stage");
    const w = Math.min(width, Math.max(8, Math.round(stage.clientWidth / zoom))), h = Math.min(height, Math.round(w * 2 / 3));
    return {x: Math.round((width - w) * $("across").value / 100), y: Math.round((height - h) * $("down").value / 100), w, h};
  }
  function paint(canvas, picture, {x, y, w, h}) {
    [canvas.width, canvas.height] = [w, h];
    const part = new ImageData(w, h);
    for (let row = 0; row < h; row++) part.data.set(picture.data.subarray(4 * ((y + row) * picture.width + x), 4 * ((y + row) * picture.width + x + w)), 4 * row * w);
    canvas.getContext("2d").putImageData(part, 0, 0);
  }
  function draw() {
    if (!whole()) return;
    const crop = view(), cut = $("cut").value;
    $("stage").style.aspectRatio = `${crop.w} / ${crop.h}`;
    $("work").hidden = false;
    for (const side of ["left", "right"]) {
      const name = $(side).value, known = results.get(name), said = $(side + "-name");
      paint($(side + "-canvas"), (known ?? results.get(BICUBIC)).picture, crop);
      said.textContent = titles.get(name) + (known ? known.psnr == null ? "" : `, ${known.psnr.toFixed(2)} dB` : ", not ready yet: bicubic");
    }
    $("right-canvas").style.clipPath = `inset(0 0 0 ${cut}%)`;
    $("line").style.left = cut + "%";
    $("stage").setAttribute("aria-label", `A part of the picture, ${crop.w} by ${crop.h} pixels. Left of the line: ${$("left-name").textContent}; right of it: ${$("right-name").textContent}.`);
    const {width, height} = whole(), box = $("box").style;
    box.left = 100 * crop.x / width + "%"; box.top = 100 * crop.y / height + "%"; box.width = 100 * crop.w / width + "%"; box.height = 100 * crop.h / height + "%";
  }
  function centre() {
    const picture = whole(), small = $("overview"), w = Math.min(480, picture.width);
    paint(small, picture, {x: 0, y: 0, w: picture.width, h: picture.height});
    small.style.width = w + "px";
    $("work").hidden = false;
    draw();
  }

  // ---- what the reader does

  const take = (blob, name) => { photo = {blob, name}; return work(); };
  $("file").addEventListener("change", () => { const [file] = $("file").files; if (file) take(file, file.name); });
  for (const button of root.querySelectorAll("button[data-photo]"))
    button.addEventListener("click", async () => {
      try {
        const answer = await fetch(FOLDER + button.dataset.photo);
        if (!answer.ok) throw new Error(answer.status);
        take(await answer.blob(), button.textContent.trim());
      } catch { say(obstacle() || "The photo could not be loaded."); }
    });
  root.addEventListener("dragover", event => { event.preventDefault(); root.classList.add("over"); });
  root.addEventListener("dragleave", () => root.classList.remove("over"));
  root.addEventListener("drop", event => {
    event.preventDefault();
    root.classList.remove("over");
    const file = [...event.dataTransfer.files].find(f => f.type.startsWith("image/"));
    if (file) take(file, file.name); else say("That is no picture.");
  });
  for (const name of ["truth", "enlarge", "whole", "engine"]) $(name).addEventListener("change", work);
  for (const name of ["left", "right", "cut", "zoom", "across", "down"]) $(name).addEventListener("input", draw);
  window.addEventListener("resize", draw);
  const drag = (element, move) => {
    element.addEventListener("pointerdown", event => { element.setPointerCapture(event.pointerId); move(event); });
    element.addEventListener("pointermove", event => { if (event.buttons) move(event); });
  };
  drag($("stage"), event => {
    const {left, width} = $("stage").getBoundingClientRect();
    $("cut").value = Math.round(100 * (event.clientX - left) / width);
    draw();
  });
  drag($("map"), event => {
    const {left, top, width, height} = $("overview").getBoundingClientRect(), {w, h} = view(), {width: W, height: H} = whole();
    const place = (at, size, all) => all > size ? 100 * Math.min(1, Math.max(0, (at * all - size / 2) / (all - size))) : 0;
    $("across").value = place((event.clientX - left) / width, w, W);
    $("down").value = place((event.clientY - top) / height, h, H);
    draw();
  });
  if (root.clientWidth < 500) $("zoom").value = 2;
  root.querySelectorAll("fieldset").forEach(set => { set.disabled = false; });
  say(obstacle() || "Choose a photo.");
});
