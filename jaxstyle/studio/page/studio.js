// The page: what is chosen, what is on its way, what was made. It asks the studio on this machine and nothing else,
// and writes names as text, never as HTML.

const $ = (id) => document.getElementById(id);
const COPIES = ["png", "tiff", "jpg"];
const CLOCKS = { step: "steps", evaluations: "evaluations", seconds: "seconds" };
const STATES = {
  waiting: "waits its turn", running: "painting", stopping: "ends its step", finished: "done", failed: "failed",
  diverged: "diverged", interrupted: "stopped", unfinished: "not finished",
};
const chosen = { content: "", style: "", against: "" };
let about, watched = null, shown = null, clock = "step", seen = "";

function make(tag, options = {}, ...children) {
  const { data, ...rest } = options;
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(data ?? {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

async function ask(path, body) {
  const sent = body === undefined ? {} : { method: "POST", body: body instanceof Blob ? body : JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, sent);
  } catch {
    throw new Error("the studio does not answer; start it again: what was painted is kept");
  }
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

const preview = (picture) => `preview?picture=${encodeURIComponent(picture)}`;
const place = (path) => path.split("/").map(encodeURIComponent).join("/");

async function copyText(button) {
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch { // not allowed: then it is a key away
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// --- what is chosen --------------------------------------------------------------------------------------------------

function easel(name) {
  const title = $(name).dataset.title;
  const input = make("input", { type: "file", accept: "image/*,.heic,.heif,.jxl,.tif,.tiff", data: { "aria-label": title } });
  const image = make("img", { alt: "", hidden: true });
  const drop = make("label", { className: "drop" }, image, make("span", {}, "drop or choose"), input);
  const label = make("p", { className: "name" });
  const samples = make("div", { className: "samples" });
  for (const { path, label: text } of about.samples) {
    const button = make("button", { type: "button", title: `sample: ${text}` }, make("img", { src: preview(path), alt: text }));
    button.onclick = () => choose(name, path, text);
    samples.append(button);
  }
  $(name).append(drop, label, samples);

  async function take(file) {
    if (!file) return;
    drop.classList.add("busy");
    tell("");
    try {
      if (file.size > about.bytes) throw new Error(`${file.name}: has ${file.size >> 20} MiB; at most ${about.bytes >> 20} are taken`);
      const kept = await ask(`uploads?name=${encodeURIComponent(file.name)}`, file);
      choose(name, kept.path, `${kept.name}, ${kept.width}×${kept.height}`);
    } catch (error) {
      tell(error.message);
    }
    drop.classList.remove("busy");
    input.value = "";
  }
  input.onchange = () => take(input.files[0]);
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files[0]);
  };
}

function choose(name, path, text) {
  chosen[name] = path;
  const [image, label] = [$(name).querySelector(".drop img"), $(name).querySelector(".name")];
  image.src = preview(path);
  image.hidden = false;
  $(name).querySelector(".drop").classList.add("filled");
  label.replaceChildren(make("b", {}, $(name).dataset.title), ` ${text}`);
  label.title = text;
  changed();
}

function tiles(control) {
  const grid = make("div", { className: "tiles" });
  const typed = control.free ? make("input", { className: "typed", type: "number", step: "any", min: 0, placeholder: "auto", data: { "aria-label": control.title } }) : "";
  for (const { value, label, picture } of control.choices) {
    const input = make("input", { type: "radio", name: control.flag, value });
    input.onchange = () => set(control.flag, value);
    grid.append(make("label", {}, input, make("img", { src: `${picture}.webp`, alt: "", loading: "lazy" }), make("span", {}, label)));
  }
  if (typed) typed.onchange = () => set(control.flag, typed.value);
  const heading = make("h2", { title: `--${control.flag}: ${control.help}` }, control.title);
  $("looks").append(make("div", { className: "look" }, make("div", { className: "heading" }, heading, typed), grid));
  return (value) => {
    for (const input of grid.querySelectorAll("input")) input.checked = input.value === value;
    if (typed) typed.value = value;
  };
}

function number(control) {
  const label = make("label", { title: `--${control.flag}: ${control.help}` }, control.title);
  $("numbers").append(label);
  if (!control.span) {
    const select = make("select", {}, ...control.choices.map((choice) => make("option", { value: choice.value }, choice.label)));
    select.onchange = () => set(control.flag, select.value);
    label.append(select);
    return (value) => { select.value = value; };
  }
  const [min, max, step] = control.span;
  const typed = make("input", { type: "number", min: control.free ? 1 : min, step: 1, placeholder: "auto" });
  if (!control.free) {
    label.append(typed);
    typed.oninput = () => set(control.flag, typed.value);
    return (value) => { if (typed.value !== value) typed.value = value; };
  }
  const slider = make("input", { type: "range", min, max, step, data: { "aria-label": control.title } });
  label.append(make("div", { className: "slide" }, slider, typed));
  slider.oninput = () => set(control.flag, slider.value);
  typed.oninput = () => set(control.flag, typed.value);
  return (value) => {
    if (typed.value !== value) typed.value = value;
    slider.value = value;
  };
}

const setters = {};

function set(flag, value) {
  chosen[flag] = value;
  setters[flag](value);
  changed();
}

let settling;
function changed() {
  sessionStorage.setItem("chosen", JSON.stringify(chosen));
  $("comparing").hidden = !chosen.against;
  $("paint").textContent = chosen.against ? "Paint both" : "Paint";
  $("paint").disabled = !(chosen.content && chosen.style);
  clearTimeout(settling);
  settling = setTimeout(settle, 400);
}

function tell(text) { $("mistake").textContent = text; }

let asked = 0;
async function settle() {
  const mine = ++asked;
  if (!(chosen.content && chosen.style)) {
    $("estimate").textContent = "Drop a photo and a style, or take samples.";
    return;
  }
  try {
    const { command } = await ask("command", chosen);
    if (mine !== asked) return;
    $("command").textContent = command;
    tell("");
    $("estimate").textContent = "estimating time and memory …";
    const { estimates, painting } = await ask("estimate", chosen);
    if (mine !== asked) return;
    if (estimates) $("estimate").replaceChildren(...estimates.flatMap(estimate));
    else if (painting) $("estimate").textContent = "Time and memory are estimated when nothing is being painted.";
    else $("estimate").textContent = "Another page asked for its estimate meanwhile; change a choice to ask again.";
  } catch (error) {
    if (mine !== asked) return;
    $("estimate").textContent = "";
    tell(error.message);
  }
}

function estimate(found, index, all) {
  const name = all.length > 1 ? `${[chosen.optimizer, chosen.against][index]}: ` : "";
  return [make("div", {}, `${name}${found.time}; memory ${found.memory}`)];
}

async function paint(event) {
  event.preventDefault();
  $("paint").disabled = true;
  try {
    const { name } = await ask("paint", chosen);
    tell("");
    asked += 1;
    $("estimate").textContent = "";
    watch(name);
    if (matchMedia("(max-width: 900px)").matches) $("stage").scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    tell(error.message);
  }
  $("paint").disabled = false;
}

// --- what is on its way and what was made ------------------------------------------------------------------------------

const addressed = () => (location.hash ? decodeURIComponent(location.hash.slice(1)) : null);

function watch(name) {
  watched = name;
  location.hash = encodeURIComponent(name);
  look();
}

let timer, painting = false;
async function look() {
  clearTimeout(timer);
  let busy = false;
  try {
    const runs = await ask("runs");
    if (shown?.name === watched && !runs.some((run) => run.name === watched)) { // taken off before it began
      location.hash = "";
      location.reload();
      return;
    }
    busy = runs.some((run) => ["waiting", "running", "stopping"].includes(run.state));
    if (painting && !busy) settle(); // what no estimate could be made beside
    painting = busy;
    hang(runs);
    if (watched === null && runs.length) watched = runs[0].name;
    if (watched !== null) show(await ask(`runs/${place(watched)}`));
    if ($("message").dataset.lost) { delete $("message").dataset.lost; $("message").textContent = ""; }
  } catch (error) {
    $("message").textContent = error.message;
    $("message").dataset.lost = "yes";
  }
  timer = setTimeout(look, busy ? 1000 : 4000);
}

function hang(runs) {
  $("wall").hidden = !runs.length;
  const text = JSON.stringify([runs, watched]);
  if (text === seen) return;
  seen = text;
  $("runs").replaceChildren(...runs.map((run) => {
    const shot = run.picture
      ? make("img", { src: `picture/${place(run.name)}?v=${run.picture}`, alt: "", loading: "lazy" })
      : STATES[run.state];
    const label = make("span", { className: "label" }, run.name, make("span", {}, STATES[run.state]));
    const button = make("button", { type: "button", className: run.state, data: { "aria-current": run.name === watched } },
      make("span", { className: "shot" }, shot), label);
    button.onclick = () => { watch(run.name); $("stage").scrollIntoView({ behavior: "smooth", block: "nearest" }); };
    return make("li", {}, button);
  }));
}

function show(run) {
  if (run.name !== watched) return;
  document.querySelector("main").classList.add("watching");
  draw(run);
  const active = ["running", "stopping"].includes(run.state), waits = run.state === "waiting";
  const steps = Number(run.chosen.steps ?? 0);
  const done = run.arms.reduce((sum, arm) => sum + (arm.curve.step.at(-1) ?? 0), 0);
  const count = Math.max(run.arms.length, run.chosen.against ? 2 : 1);
  const latest = run.arms.findLast((arm) => arm.curve.step.length);
  $("progress").hidden = !(active || waits);
  $("progress").className = done ? "" : "waiting";
  $("progress").firstElementChild.style.width = done ? `${(100 * done) / (steps * count)}%` : "";
  const words = [STATES[run.state]];
  if (active && !latest) words.push("reads the pictures and compiles, which the first time takes a while");
  if (latest && (active || done < steps * count)) words.push(`step ${done} of ${steps * count}`);
  if (count === 1 && latest) words.push(...facts(latest));
  $("state").replaceChildren(make("b", {}, run.name), " ", make("span", {}, words.join(" · ")));
  $("message").textContent = run.message;
  act(run);
  curves(run.arms);
  $("made").hidden = false;
  $("made").firstElementChild.textContent = run.command;
  shown = run;
}

function draw(run) {
  const arms = [...run.arms]; // and a place for what has not begun
  while (arms.length < (run.chosen.against ? 2 : 1)) arms.push({ label: "", path: `${arms.length}` });
  const key = `${run.name} ${arms.map((arm) => arm.path)}`;
  const canvas = $("canvas");
  if (canvas.dataset.key !== key) {
    canvas.dataset.key = key;
    canvas.replaceChildren(...arms.map((arm) => {
      const figure = make("figure", {}, make("div", { className: "frame" }, make("img", { alt: arm.label })));
      if (arms.length > 1) figure.append(make("figcaption"));
      return figure;
    }));
  }
  arms.forEach((arm, index) => {
    const image = canvas.children[index].querySelector("img"), caption = canvas.children[index].querySelector("figcaption");
    if (caption && caption.dataset.key !== JSON.stringify(arm)) {
      caption.dataset.key = JSON.stringify(arm);
      caption.replaceChildren(make("b", { className: hue(index) }, arm.label || "comes next"), ...facts(arm), make("span", {}, ...copies(arm)));
    }
    const source = arm.picture
      ? `picture/${place(arm.path)}?v=${arm.picture}`
      : run.chosen.content ? preview(run.chosen.content) : "";
    image.className = arm.picture ? "" : "photo";
    image.hidden = !source;
    if (source && image.getAttribute("src") !== source && !canvas.classList.contains("held")) {
      const next = new Image(); // shown once it is there, so that the picture does not flicker
      next.onload = () => { image.src = source; };
      next.src = source;
    }
  });
}

/** The class that colours the name and the curve of an arm. */
const hue = (index) => `arm${index % 6}`;

/** What a run has come to: its loss and what that took. */
function facts(arm) {
  if (!arm.curve?.step.length) return [];
  return [` loss ${arm.curve.total.at(-1).toPrecision(5)}, ${arm.curve.seconds.at(-1).toFixed(1)} s`];
}

/** Links to the result of a run that has ended. */
function copies(arm) {
  if (!["finished", "diverged"].includes(arm.status)) return [];
  const found = COPIES.map((suffix) => [suffix, suffix.toUpperCase()]).concat(arm.film ? [["webp", "Film"]] : []);
  return found.map(([suffix, text]) => make("a", { className: "button", href: `download/${place(arm.path)}.${suffix}`, download: "" }, text));
}

function button(text, act) {
  const made = make("button", { type: "button" }, text);
  made.onclick = async () => {
    made.disabled = true;
    try { await act(); } catch (error) { $("message").textContent = error.message; }
    look();
  };
  return made;
}

function act(run) {
  const key = JSON.stringify([run.name, run.state, run.queued, run.report, run.arms.map((arm) => [arm.path, arm.status, arm.film])]);
  if ($("actions").dataset.key === key) return;
  $("actions").dataset.key = key;
  const found = [];
  if (run.queued) found.push(Object.assign(button(run.state === "waiting" ? "Take off the queue" : "Stop", () => ask(`stop/${place(run.name)}`, {})), { disabled: run.state === "stopping" }));
  if (["interrupted", "unfinished", "failed"].includes(run.state) && run.arms.length) found.push(button("Go on", () => ask(`go-on/${place(run.name)}`, {})));
  if (run.arms.length === 1) found.push(...copies(run.arms[0]));
  if (run.report) found.push(make("a", { className: "button", href: `report/${place(run.name)}`, target: "_blank" }, "Report"));
  if (run.chosen.content && run.arms.length) found.push(hold(run));
  if (run.chosen.content) found.push(button("Use its settings", () => restore(run.chosen)));
  $("actions").replaceChildren(...found);
}

function hold(run) {
  const made = make("button", { type: "button", title: "Hold to see the photo" }, "Hold: photo");
  const swap = (on) => {
    $("canvas").classList.toggle("held", on);
    for (const image of $("canvas").querySelectorAll("img")) {
      if (on) { image.dataset.was = image.src; image.src = preview(run.chosen.content); }
      else if (image.dataset.was) { image.src = image.dataset.was; delete image.dataset.was; }
    }
  };
  made.onpointerdown = () => swap(true);
  made.onpointerup = made.onpointerleave = made.onpointercancel = () => swap(false);
  return made;
}

// --- curves ------------------------------------------------------------------------------------------------------------

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Losses over a clock, on a logarithmic scale from the lowest to the highest. */
function curves(arms) {
  const lines = arms.filter((arm) => arm.curve.step.length > 1);
  $("curve").hidden = !lines.length;
  if (!lines.length) return;
  $("clocks").replaceChildren(make("span", {}, "Loss"), make("span", {}, ...Object.entries(CLOCKS).map(([name, text]) => {
    const made = make("button", { type: "button", data: { "aria-pressed": name === clock } }, text);
    made.onclick = () => { clock = name; if (shown) curves(shown.arms); };
    return made;
  })));
  const [left, right, top, bottom] = [52, 590, 10, 195];
  const totals = lines.flatMap((arm) => arm.curve.total).filter((total) => total > 0);
  const [low, high] = [Math.log10(Math.min(...totals)), Math.log10(Math.max(...totals))];
  const last = Math.max(...lines.flatMap((arm) => arm.curve[clock].at(-1)));
  const x = (value) => left + (last ? value / last : 0) * (right - left);
  const y = (total) => bottom - ((Math.log10(total) - low) / (high - low || 1)) * (bottom - top);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const total = 10 ** (low + share * (high - low));
    parts.push(svg("line", { class: "axis", x1: left, x2: right, y1: y(total), y2: y(total) }));
    parts.push(svg("text", { x: left - 8, y: y(total) + 4, "text-anchor": "end" }, total.toPrecision(3).replace("e+", "e")));
    const value = share * last;
    parts.push(svg("text", { x: x(value), y: bottom + 18, "text-anchor": share === 1 ? "end" : share ? "middle" : "start" },
      clock === "seconds" ? value.toPrecision(3) : Math.round(value)));
  }
  lines.forEach((arm, row) => {
    const own = hue(arms.indexOf(arm));
    const points = arm.curve.total.map((total, k) => total > 0 ? `${x(arm.curve[clock][k]).toFixed(1)},${y(total).toFixed(1)}` : "");
    parts.push(svg("polyline", { class: own, points: points.join(" ") }));
    if (lines.length > 1) parts.push(svg("text", { class: own, x: right, y: top + 14 + 16 * row, "text-anchor": "end" }, arm.label));
  });
  $("curve").querySelector("svg").replaceChildren(...parts);
}

// --- beginning -----------------------------------------------------------------------------------------------------------

function restore(values) {
  for (const name of ["content", "style"]) {
    if (values[name]) choose(name, values[name], values[name].replace("sample:", "").split("/").at(-1));
  }
  for (const [flag, setter] of Object.entries(setters)) {
    if (values[flag] !== undefined) { chosen[flag] = values[flag]; setter(values[flag]); }
  }
  changed();
}

async function begin() {
  about = await ask("about");
  $("folder").textContent = `runs are kept in ${about.folder}`;
  for (const name of ["content", "style"]) easel(name);
  for (const control of about.controls) setters[control.flag] = (control.choices[0]?.picture ? tiles : number)(control);
  for (const name of ["optimizer", "against"]) {
    setters[name] = (value) => { if ($(name).value !== value) $(name).value = value; };
    $(name).oninput = () => set(name, $(name).value);
  }
  $("optimizers").append(...about.optimizers.map((each) => make("option", { value: each.value }, each.label)));
  $("canvas").append(make("p", { className: "empty" }, make("b", {}, "Nothing painted yet"),
    "Choose a photo and a style, then Paint. The picture appears here while it is made."));
  $("bench").onsubmit = paint;
  for (const copy of document.querySelectorAll(".command button")) copy.onclick = () => copyText(copy);
  for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
  restore({ ...about.defaults, ...JSON.parse(sessionStorage.getItem("chosen") ?? "{}") });
  watched = addressed();
  addEventListener("hashchange", () => { // another address in this window, or Back
    if (addressed() === watched) return;
    watched = addressed();
    look();
  });
  look();
}

begin().catch((error) => tell(error.message));
