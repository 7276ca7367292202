// The page "Distil it here": gradient matching in the reader's browser, off the page's own thread.  Nothing leaves the page.
"use strict";
document.querySelectorAll(".srd-distil").forEach(root => {
  const $ = name => root.querySelector(`[data-part=${name}]`), engine = srdEngine(), {side} = engine, MOST = 64, FEWEST = 16;
  const numbers = name => root.dataset[name].split(",").map(Number);
  let photo = null, port = null, state = "idle", run = [], pool = 0, of = 0, said = 0;
  root.srdDistil = {engine, get state() { return state; }, get losses() { return run.map(n => n.L); }};

  const say = text => { $("status").textContent = text; };
  const decimals = x => x.toFixed(2).replace("-", "−"), signed = x => (x < 0 ? "" : "+") + decimals(x), short = x => String(Number(x.toPrecision(2)));
  const mean = list => list.reduce((a, b) => a + b, 0) / list.length;

  // ---- pictures

  function cut(picture, seed) {   // up to 64 windows, those of a regular grid in an order drawn from the seed; the first half is matched
    const width = picture.naturalWidth ?? picture.width, height = picture.naturalHeight ?? picture.height;   // of an image, or of a canvas
    const pen = Object.assign(document.createElement("canvas"), {width, height}).getContext("2d", {willReadFrequently: true});
    pen.drawImage(picture, 0, 0);
    const {data} = pen.getImageData(0, 0, width, height), cells = [];
    for (let y = 0; y + side <= height; y += side) for (let x = 0; x + side <= width; x += side) cells.push([x, y]);
    if (cells.length < FEWEST) throw new Error(`a picture of ${width} × ${height} pixels has ${cells.length} windows of ${side}²; take one of at least ${4 * side} × ${4 * side}`);
    return engine.random(seed).shuffle(cells).slice(0, Math.min(MOST, cells.length - cells.length % 2)).map(([x0, y0]) => {
      const pixels = new Float32Array(3 * side * side);
      for (let y = 0; y < side; y++) for (let x = 0; x < side; x++) for (let c = 0; c < 3; c++)
        pixels[(c * side + y) * side + x] = data[4 * ((y0 + y) * width + x0 + x) + c] / 255;
      return pixels;
    });
  }
  function paint(canvas, windows, across) {
    const gap = windows.length > 1 ? 2 : 0, rows = Math.ceil(windows.length / across);
    [canvas.width, canvas.height] = [across * (side + gap) - gap, rows * (side + gap) - gap];
    windows.forEach((pixels, k) => {
      const image = new ImageData(side, side);
      for (let q = 0; q < side * side; q++) {
        for (let c = 0; c < 3; c++) image.data[4 * q + c] = Math.round(255 * pixels[c * side * side + q]);
        image.data[4 * q + 3] = 255;
      }
      canvas.getContext("2d").putImageData(image, k % across * (side + gap), Math.floor(k / across) * (side + gap));
    });
  }

  // ---- the curve: the mean of L over the networks of a round; 1 is that of the pool in the first round

  function curves() {
    const rounds = [], unseen = [];
    for (const {step, L, unseen: other} of run) {
      const k = Math.floor(step / pool);
      (rounds[k] ??= []).push(L);
      if (other) unseen[k] = mean(other);
    }
    if (run.unseen) unseen.push(mean(run.unseen));
    return {inside: rounds.filter(list => list.length === pool).map(mean), outside: unseen};
  }
  function draw() {
    const {inside, outside} = curves(), n = of / pool || 1, relative = list => list.map(L => L / (inside[0] ?? outside[0]));
    const a = relative(inside), b = relative(outside), top = Math.min(2, Math.max(1, ...a, ...b)) * 1.05, x = k => 34 + 276 * k / n, y = v => 128 - 116 * v / top;
    const line = (list, style) => `<polyline fill="none" style="${style}" points="${list.map((v, k) => `${x(k).toFixed(1)},${Math.max(2, y(v)).toFixed(1)}`).join(" ")}"/>`;
    const ticks = [0, .5, 1, 1.5, 2].filter(v => v <= top).map(v => `<path d="M34 ${y(v)}H310" class="grid"/><text x="29" y="${y(v) + 4}" text-anchor="end">${v}</text>`).join("");
    $("curve").innerHTML = ticks + line(b, "stroke: #d55e00; stroke-width: 2; stroke-dasharray: 6 3") + line(a, "stroke: #0090d8; stroke-width: 2.5") +
      `<text x="34" y="145">0</text><text x="172" y="145" text-anchor="middle">rounds</text><text x="310" y="145" text-anchor="end">${n}</text>`;
    const said = {};
    for (const [part, list] of Object.entries({inside, outside})) {
      const now = list[list.length - 1];
      said[part] = !list.length ? "not measured yet" : list.length < 2 ? `${short(now)} at the start` : `from ${short(list[0])} to ${short(now)}, ${decimals(now / list[0])} of its start`;
      $(part).textContent = said[part];
    }
    $("curve").setAttribute("aria-label", `Matching loss over the rounds. In the pool: ${said.inside}. In networks outside it: ${said.outside}.`);
    return said;
  }

  // ---- the engine, in a worker; where a browser has none, in slices between which the page has its turn

  function launch() {
    let made;
    try {
      const address = URL.createObjectURL(new Blob([`"use strict";(${srdEngine})().serve(self)`], {type: "text/javascript"}));
      made = new Worker(address);
      made.onerror = event => { event.preventDefault(); failed(event.message || "the worker did not start"); };
      made.stop = () => { made.terminate(); URL.revokeObjectURL(address); };
    } catch {
      const {port1, port2} = new MessageChannel();
      srdEngine().serve(port2, 12);
      made = port1;
      made.stop = () => made.postMessage({stop: true});
    }
    made.onmessage = ({data}) => { if (made === port) data.failed ? failed(data.failed) : take(data); };
    return made;
  }
  function failed(why) { reset(); say(`That did not work: ${why}.`); }

  function take({news, image}) {
    for (const one of news) {
      if (one.stage === "networks") progress(one.done, "Training the small networks in which the gradients are compared");
      else if (one.stage === "bank") progress(one.done, "Computing the gradients of the real windows");
      else if (one.stage === "start") { pool = one.pool; paint($("first"), [image], 1); }
      else if (one.stage === "distil") { run.push(one); of = one.of; }
      else if (one.stage === "distilled") { finished(one.unseen); }
      else if (one.stage === "train") progress(one.done, "Training on the image and on its rivals");
      else if (one.stage === "trained") table(one);
    }
    if (image) paint($("image"), [image], 1);
    if (run.length && state !== "training") {
      draw();
      if (state === "running") progress(run.length / of, `Step ${run.length} of ${of}`);
    }
  }
  function progress(done, text) {   // the status is read aloud, so it changes ten times in all
    $("progress").value = done;
    if (Math.floor(10 * done) !== said || !$("status").textContent.startsWith(text.slice(0, 4))) { said = Math.floor(10 * done); say(`${text}: ${10 * said} %.`); }
  }

  // ---- what the reader does

  function show(next) {
    state = next;
    root.setAttribute("aria-busy", String(["running", "training"].includes(state)));
    $("go").textContent = {idle: "Distil", running: "Pause", paused: "Go on", done: "Distil again", training: "Distil"}[state];
    $("go").disabled = state === "training";
    $("reset").disabled = state === "idle";
    $("train").disabled = !(state === "done" || state === "paused" && run.length);
    $("settings").disabled = ["running", "paused", "training"].includes(state);
    $("progress").hidden = !["running", "paused", "training"].includes(state);
  }
  function reset() {
    port?.stop();
    port = null; run = []; pool = of = said = 0;
    $("work").hidden = true; $("table").hidden = true;
    show("idle");
    say("Press Distil.");
  }
  function go() {
    if (state === "running") { port.postMessage({pause: true}); show("paused"); return say(run.length ? `Paused after ${run.length} steps.` : "Paused."); }
    if (state === "paused") { show("running"); return port.postMessage({pause: false}); }
    if (state === "done") reset();
    try {
      const seed = Number($("seed").value) || 0, windows = cut(photo, seed), real = windows.slice(0, windows.length / 2);
      $("work").hidden = false;
      paint($("real"), real, 8);
      for (const name of ["first", "image"]) paint($(name), [new Float32Array(3 * side * side).fill(.5)], 1);
      show("running");
      draw();
      port = launch();
      port.postMessage({distil: {windows, seed, objective: $("objective").value, start: $("start").value, rounds: Number($("rounds").value),
        ages: numbers("ages"), trainings: numbers("trainings")[0], rivalSteps: numbers("rivalSteps")[0]}});
    } catch (error) { failed(error.message); }
  }
  function finished(unseen) {
    run.unseen = unseen;
    show("done");
    const {inside, outside} = draw();
    say(`Done after ${run.length} steps. Matching loss in the networks of the pool: ${inside}; in networks outside it: ${outside}. Does a network learn more from the image? Train on it.`);
  }
  function train() {
    show("training");
    port.postMessage({train: true});
  }
  function table({bicubic, scores, heldOut, real, steps}) {
    const names = {all: `all ${real} real windows`, random: "a random real window", start: "the start, one window", distilled: "the distilled image"};
    const rows = Object.entries(names).map(([key, name]) => [name, decimals(mean(scores[key])), scores[key].map(dB => decimals(dB)).join(", ")]);
    $("rows").replaceChildren(...[["bicubic, which learns nothing", decimals(bicubic), ""], ...rows].map(cells => {
      const row = document.createElement("tr");
      row.append(...cells.map((text, k) => Object.assign(document.createElement(k ? "td" : "th"), {textContent: text, ...(k ? {} : {scope: "row"})})));
      return row;
    }));
    const gains = ["start", "random"].map(key => scores.distilled.map((dB, k) => dB - scores[key][k])), worse = gains.filter(list => mean(list) < 0).length;
    const above = gains.every(list => list.every(gain => gain > 0));
    const by = gains.map(list => `${list.every(g => g > 0) ? "more with each seed" : list.every(g => g < 0) ? "less with each seed" : "sometimes more, sometimes less"} (${signed(mean(list))} dB on average)`);
    const verdict = above ? "Here distillation won, with each of three seeds, on one photo." : worse ? "Here distillation lost." : "Here distillation shows no clear gain.";
    $("verdict").textContent = `${verdict} Against its own start, networks learnt from the distilled image ${by[0]}; against a random window, ${by[1]}. ` +
      (mean(scores.distilled) < bicubic ? "They enlarge worse than bicubic: one image of this size is too little to learn from." : "They enlarge better than bicubic.");
    $("about").textContent = `PSNR in dB on ${heldOut} held-out windows of the same photo; ${steps} training steps with one window each, three seeds.`;
    $("table").hidden = false;
    show("done");
    say(`Trained. ${verdict} The table is at the end.`);
  }

  async function read(blob, name) {
    try {
      const bitmap = await createImageBitmap(blob), most = 1024, w = Math.min(most, bitmap.width), h = Math.min(most, bitmap.height);
      const canvas = Object.assign(document.createElement("canvas"), {width: w, height: h}), pen = canvas.getContext("2d");
      pen.fillStyle = "#fff"; pen.fillRect(0, 0, w, h);   // under what is transparent
      pen.drawImage(bitmap, -Math.floor((bitmap.width - w) / 2), -Math.floor((bitmap.height - h) / 2));
      cut(canvas, 0);   // is it large enough?
      reset();
      choose(canvas, null);
      say(`${name}: press Distil.`);
    } catch (error) { say(`This photo cannot be used: ${error.message}.`); }
  }
  function choose(picture, button) {
    photo = picture;
    for (const other of root.querySelectorAll("button[data-photo]")) other.setAttribute("aria-pressed", String(other === button));
  }
  const photos = [...root.querySelectorAll("button[data-photo]")];
  for (const button of photos) button.addEventListener("click", () => { reset(); choose(button.querySelector("img"), button); });
  $("file").addEventListener("change", () => { const [file] = $("file").files; if (file) read(file, file.name); });
  root.addEventListener("dragover", event => { event.preventDefault(); root.classList.add("over"); });
  root.addEventListener("dragleave", () => root.classList.remove("over"));
  root.addEventListener("drop", event => {
    event.preventDefault();
    root.classList.remove("over");
    const file = [...event.dataTransfer.files].find(f => f.type.startsWith("image/"));
    if (file) read(file, file.name); else say("That is no picture.");
  });
  $("go").addEventListener("click", go);
  $("reset").addEventListener("click", reset);
  $("train").addEventListener("click", train);
  choose(photos[0].querySelector("img"), photos[0]);
  root.querySelectorAll("fieldset").forEach(set => { set.disabled = false; });
  reset();
});
