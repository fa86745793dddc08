"use strict";
// The player: one clip, one step, six tiles. State is `clip` and `step`; `draw` shows it, everything else changes it.
(() => {
  const player = document.getElementById("player");
  if (!player) return;
  const content = JSON.parse(document.getElementById("player-content").textContent);
  const { clips, columns, context, grid } = content;
  const steps = clips[0].seconds.length;
  const STEP_MS = 400;
  const byId = (id) => document.getElementById(id);
  const [range, status, bars, playButton] = ["step", "status", "bars", "play"].map(byId);
  const radios = [...player.querySelectorAll("input[name=clip]")];
  const sheets = clips.map(loadSheets);
  let clip = 0;
  let step = Math.min(context + 3, steps - 1);
  let timer = null;

  function loadSheets(item) {
    const sources = { ...item.sheets, ...(item.frames && { video: item.frames.sheet }) };
    return Object.fromEntries(Object.entries(sources).map(([name, source]) => {
      const image = new Image();
      image.onload = draw;
      image.src = source;
      return [name, image];
    }));
  }

  // Picture `index` of a sheet on a canvas of the picture's own size; an empty canvas where there is none.
  function paint(canvas, image, index, [width, height]) {
    canvas.width = width;
    canvas.height = height;
    if (!image?.complete || index < 0) return;
    const left = (index % columns) * width;
    const top = Math.floor(index / columns) * height;
    canvas.getContext("2d").drawImage(image, left, top, width, height, 0, 0, width, height);
  }

  function show(name, sheet, index, title, note) {
    const canvas = byId(`tile-${name}`);
    const size = name === "video" ? clips[clip].frames?.size ?? grid : grid;
    canvas.classList.toggle("latents", name !== "video");
    paint(canvas, sheets[clip][sheet], index, size);
    canvas.setAttribute("aria-label", `${title}, step ${step + 1}${index < 0 ? ", nothing" : ""}`);
    byId(`note-${name}`).textContent = note;
  }

  function draw() {
    const item = clips[clip];
    const ahead = step - context;
    const future = ahead >= 0;
    const number = (values) => (future ? values[ahead].toFixed(2) : "");
    show("video", "video", item.frames ? step : -1, "Video", item.frames ? seconds(item) : "not found");
    show("truth", "truth", step, future ? "Truth" : "Context", "");
    player.querySelector(".tile-truth .tile-title").textContent = future ? "Truth" : "Context";
    for (const [name, title] of [["prediction", "Prediction"], ["copy", "Copy last"]]) {
      show(name, future ? name : "truth", future ? ahead : step, title, future ? "" : "context");
    }
    show("error", "error", ahead, "Error of the prediction", number(item.error));
    show("copy_error", "copy_error", ahead, "Error of copying", number(item.copy_error));
    [...bars.children].forEach((bar, index) => bar.classList.toggle("now", index === step));
    range.value = step;
    range.setAttribute("aria-valuetext", describe(item, ahead));
    status.textContent = describe(item, ahead);
  }

  function seconds(item) {
    return `${item.seconds[step] > 0 ? "+" : ""}${item.seconds[step].toFixed(2)} s`.replace("-", "\u2212");
  }

  function describe(item, ahead) {
    const place = `Step ${step + 1} of ${steps}`;
    if (!item.valid[step]) return `${place}: padding, the video has ended`;
    if (ahead < 0) return `${place}: context`;
    return `${place}: horizon ${ahead + 1}, error ${item.error[ahead].toFixed(2)}, copying ${item.copy_error[ahead].toFixed(2)}`;
  }

  function drawBars() {
    const { error, copy_error: copyError } = clips[clip];
    const highest = Math.max(1e-6, ...error, ...copyError);
    bars.replaceChildren(...clips[clip].seconds.map((_, index) => {
      const cell = document.createElement("div");
      cell.onclick = () => go(index);
      if (index >= context) {
        cell.className = "future";
        cell.append(bar("prediction", "height", error[index - context] / highest));
        cell.append(bar("copy", "bottom", copyError[index - context] / highest));
      }
      return cell;
    }));
  }

  function bar(name, property, fraction) {
    const mark = document.createElement("i");
    mark.className = name;
    mark.style[property] = `${94 * fraction}%`;
    return mark;
  }

  function go(wanted) {
    step = Math.max(0, Math.min(steps - 1, wanted));
    draw();
  }

  function choose(wanted) {
    clip = wanted;
    drawBars();
    draw();
  }

  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => go((step + 1) % steps), STEP_MS) : null;
    player.classList.toggle("playing", on);
    playButton.setAttribute("aria-label", on ? "Pause" : "Play");
    status.setAttribute("aria-live", on ? "off" : "polite");
  }

  const keys = {
    ArrowLeft: () => go(step - 1),
    ArrowRight: () => go(step + 1),
    Home: () => go(0),
    End: () => go(steps - 1),
    " ": () => play(timer === null),
  };
  // Buttons, the slider and the choice of clips keep what the browser does with these keys.
  const owned = { button: [" "], radio: ["ArrowLeft", "ArrowRight", "Home", "End"], range: ["ArrowLeft", "ArrowRight", "Home", "End"] };

  player.addEventListener("keydown", (event) => {
    const plain = !(event.altKey || event.ctrlKey || event.metaKey);
    if (!plain || !keys[event.key] || owned[event.target.type]?.includes(event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });
  range.addEventListener("input", () => go(Number(range.value)));
  playButton.addEventListener("click", () => play(timer === null));
  byId("previous").addEventListener("click", () => go(step - 1));
  byId("next").addEventListener("click", () => go(step + 1));
  radios.forEach((radio, index) => radio.addEventListener("change", () => choose(index)));

  function drawThumbnails() {
    radios.forEach((radio, index) => {
      const { frames } = clips[index];
      const [sheet, size] = frames ? ["video", frames.size] : ["truth", grid];
      const canvas = radio.nextElementSibling;
      const image = sheets[index][sheet];
      image.decode().then(() => paint(canvas, image, context - 1, size));
    });
  }

  range.max = steps - 1;
  player.style.setProperty("--steps", steps);
  byId("span-context").style.flexGrow = context;
  byId("span-future").style.flexGrow = steps - context;
  drawBars();
  drawThumbnails();
  draw();
})();
