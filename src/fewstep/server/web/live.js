// The live page: what the viewer does, and what is shown of it.

import { FIGURES, Tile } from "./figures.js";
import { CODES, Link } from "./link.js";
import { Player, Screen, TeacherPlayer } from "./player.js";
import { at, make, number, seconds, write } from "./small.js";

const GRACE = 10_000; // ms of pause after which the session is given back
const MARKED = 4000; // ms for which a new prompt's latency stands on the screen
const PATIENCE = 3000; // ms of a start after which it is told why it takes so long
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const page = {
  prompt: "", // asked for
  seed: null,
  wanted: false, // playing, if the viewer had their way
  session: "none", // none, starting, on: what the server has of us
  pending: null, // {prompt, since, first}: not on the screen yet
  tricks: {}, // name to what the viewer switched it to
  teacher: false,
  turned: false,
  first: NaN, // ms
  trip: NaN, // ms there and back
  live: {}, viewer: {}, work: {}, teacherWork: {},
};

const liveScreen = new Screen(at("live-canvas"));
const teacherScreen = new Screen(at("teacher-canvas"));
const player = page.player = new Player(liveScreen, {
  shown: (header) => link.send({ type: "shown", index: header.index, source: "live" }),
  drew: drewLive,
});
const teacher = new TeacherPlayer(teacherScreen, {
  shown: (header) => link.send({ type: "shown", index: header.index, source: "teacher" }),
  drew: (header) => {
    page.teacherWork = header.work;
    at("teacher-waiting").hidden = true;
    teacherScreen.canvas.setAttribute("aria-label", `The teacher's video: ${header.prompt}`);
  },
});
const tiles = FIGURES.map((figure) => new Tile(figure, at("figures")));
const away = () => !page.wanted || document.hidden;

const link = new Link({
  open: () => { page.session = "none"; },
  closed(event, wait) {
    page.session = "none";
    player.reset(player.fps);
    teacher.reset();
    at("key-form").hidden = event.code !== CODES.noKey;
    page.until = wait === null ? null : performance.now() + wait;
    if (event.code === CODES.noKey) { state("trouble", "Key needed"); at("key").focus(); return; }
    if (wait === null) { stopped(event.reason || "The server closed the connection."); return; }
    state("trouble", "Reconnecting", event.reason || "The connection was lost; trying again.");
  },
  text: (message) => HEARD[message.type]?.(message),
  chunk(header, blobs) {
    if (page.session === "starting" && header.source === "live") return; // of the session before
    const target = header.source === "live" ? player : teacher;
    if (away() || (target === teacher && !page.teacher)) target.shown(header);
    else target.add(header, blobs);
  },
});

const HEARD = {
  hello(message) {
    link.tries = 0;
    write(at("model"), message.name);
    fillExamples(message.examples);
    fillTricks(message.tricks);
    page.prompt ||= message.examples[0] ?? "";
    at("prompt").value ||= page.prompt;
    if (page.wanted || (!page.greeted && !calm.matches && page.prompt)) play();
    else state("idle", "Ready", "Ready to play");
    page.greeted = true;
  },
  ready(message) {
    page.session = "on";
    player.reset(message.fps);
    teacher.fps = message.fps;
    write(at("problem"), "");
    markTricks({ ...message.tricks, ...page.tricks });
    for (const [trick, on] of Object.entries(page.tricks)) if (message.tricks[trick] !== on) link.send({ type: "switch", trick, on });
    if (page.teacher) link.send({ type: "teacher", on: true });
    for (const screen of [liveScreen, teacherScreen]) screen.shape(...message.size);
    if (away()) leave();
  },
  switched: (message) => markTricks(message.tricks),
  stats(message) {
    Object.assign(page, { live: message.live, viewer: message.viewer });
    page.teacherFps = message.teacher?.fps;
    if (!away()) figures();
  },
  pong: () => { page.trip = performance.now() - page.pinged; },
  stopped() { if (page.session === "on") stopped(page.wanted && "The session ended."); },
  error({ error }) {
    write(at("problem"), error.message);
    if (error.param === "teacher") { showTeacher(false); return; }
    if (page.session === "starting") stopped();
    if (page.session === "on" && error.param === "prompt") Object.assign(page, { pending: null, prompt: page.shown ?? page.prompt });
  },
};

// What the viewer does ------------------------------------------------------------------------------------------------

function play() {
  page.wanted = true;
  if (!link.open) { link.wake(); return; } // the server's greeting leads back here
  Object.assign(page, { session: "starting", pending: { prompt: page.prompt, since: performance.now(), first: true } });
  player.clear();
  link.send({ type: "start", prompt: page.prompt, ...(page.seed === null ? {} : { seed: page.seed }) });
  state("connecting", "Starting");
}

function ask(prompt) {
  write(at("problem"), "");
  at("prompt").value = prompt;
  const same = prompt === page.prompt;
  page.prompt = prompt;
  if (!page.wanted || page.session !== "on") { play(); return; }
  if (same) return;
  page.pending = { prompt, since: performance.now(), first: false };
  link.send({ type: "prompt", prompt });
}

function pause() {
  page.wanted = false;
  leave();
  state("paused", "Paused", "Paused");
}

// Not looked at: what comes is not kept, and after a while no longer made.
function leave() {
  player.queue.filter((frame) => frame.first).forEach((frame) => player.shown(frame.header));
  player.clear();
  clearTimeout(page.grace);
  page.grace = setTimeout(() => {
    if (away() && page.session === "on") { page.session = "none"; link.send({ type: "stop" }); }
  }, GRACE);
}

function resume() {
  clearTimeout(page.grace);
  page.wanted = true;
  if (page.session === "on") state("live", "Live", "Playing");
  else play();
}

function again() {
  page.seed = Math.floor(Math.random() * 2 ** 31);
  play();
}

function showTeacher(on) {
  page.teacher = on;
  teacher.reset(player.fps);
  at("teacher").hidden = !on;
  at("teacher-waiting").hidden = false;
  document.querySelector(".stage").classList.toggle("two", on);
  set("teacher", on);
  if (page.session === "on") link.send({ type: "teacher", on });
}

// What the page shows -------------------------------------------------------------------------------------------------

function drewLive(header, now) {
  page.work = header.work;
  if (at("state").dataset.state !== "live") state("live", "Live", "Playing");
  if (page.shown !== header.prompt) {
    page.shown = header.prompt;
    at("live-canvas").setAttribute("aria-label", `Live video: ${header.prompt}`);
  }
  if (page.pending?.prompt === header.prompt) turned(now - page.pending.since);
}

function turned(latency) {
  const { prompt, first } = page.pending;
  page.pending = null;
  if (first) { page.first = latency; figures(); return; }
  page.turned = true;
  write(at("mark"), `New prompt, after ${seconds(latency)}`);
  say(`${prompt}: on the screen after ${seconds(latency)}`);
  const screen = at("live-canvas").parentElement;
  screen.classList.add("turned");
  at("mark").classList.add("seen");
  requestAnimationFrame(() => requestAnimationFrame(() => screen.classList.remove("turned")));
  clearTimeout(page.marking);
  page.marking = setTimeout(() => at("mark").classList.remove("seen"), MARKED);
  at("history").hidden = false;
  at("history-list").prepend(make("li", {}, make("span", {}, prompt), make("b", {}, seconds(latency))));
  while (at("history-list").children.length > 5) at("history-list").lastChild.remove();
}

function figures() {
  tiles.forEach((tile) => tile.update(page, page.turned));
  page.turned = false;
  write(at("live-caption"), caption(page.work, player.shownFps));
  write(at("teacher-caption"), caption(page.teacherWork, page.teacherFps));
}

function caption(work, fps) { return fps ? `${work.steps ?? "–"} ${work.steps === 1 ? "step" : "steps"} · ${number(fps, 1)} fps` : ""; }

function state(name, text, spoken) {
  at("state").dataset.state = name;
  write(at("state-text"), text);
  if (spoken) say(spoken);
  write(at("pause"), page.wanted ? "Pause" : "Play");
  at("begin").hidden = page.wanted || !["idle", "paused"].includes(name);
}

function stopped(why) {
  Object.assign(page, { wanted: false, session: "none", pending: null });
  state("idle", "Stopped", "Stopped");
  if (why) write(at("problem"), why);
}

function say(text) { write(at("said"), text); }

function fillExamples(prompts) {
  at("examples").replaceChildren(...prompts.map((prompt) => {
    const button = make("button", { type: "button" }, prompt);
    button.onclick = () => ask(prompt);
    return button;
  }));
}

function fillTricks(tricks) {
  const rows = Object.entries(tricks).map(([name, about]) => row(name, `trick-${name}`, about, (on) => {
    page.tricks[name] = on;
    if (page.session === "on") link.send({ type: "switch", trick: name, on });
  }));
  const beside = row("Teacher beside it", "trick-teacher", "The slow model of many steps that it was distilled from, for comparison.", showTeacher);
  at("tricks").replaceChildren(at("tricks").firstElementChild, ...rows, beside);
  at("tricks").hidden = false;
}

function row(name, id, about, toggled) {
  const box = make("input", { type: "checkbox", role: "switch", id, disabled: "", "aria-describedby": `${id}-about` });
  const word = make("span", { class: "word", "aria-hidden": "true" });
  box.onchange = () => { write(word, box.checked ? "on" : "off"); toggled(box.checked); };
  return make("label", { class: "trick", for: id }, make("b", {}, name), make("small", { id: `${id}-about` }, about), make("span", { class: "toggle" }, word, box));
}

// A switch stays closed until there is a session that says how it stands.
function set(trick, on) {
  const box = at(`trick-${trick}`);
  Object.assign(box, { checked: on, disabled: false });
  write(box.previousElementSibling, on ? "on" : "off");
}

function markTricks(tricks) {
  Object.entries({ ...tricks, teacher: page.teacher }).forEach(([trick, on]) => set(trick, on));
}

// What runs -----------------------------------------------------------------------------------------------------------

let before = performance.now();
function frame(now) {
  if (!away()) {
    player.step(now, now - before);
    if (page.teacher) teacher.step(now, now - before);
  }
  before = now;
  requestAnimationFrame(frame);
}

setInterval(() => {
  if (link.open) {
    page.pinged = performance.now();
    link.send({ type: "ping", id: 0 });
    if (page.wanted && page.session === "starting" && page.pinged - page.pending.since > PATIENCE) write(at("state-text"), "Still loading, or busy");
  } else if (at("state").dataset.state === "trouble" && page.until) {
    const left = Math.ceil((page.until - performance.now()) / 1000);
    write(at("state-text"), left > 0 ? `Reconnecting in ${left} s` : "Reconnecting");
  }
}, 1000);

at("prompt-form").onsubmit = (event) => { event.preventDefault(); ask(at("prompt").value.trim()); };
at("key-form").onsubmit = (event) => { event.preventDefault(); link.useKey(at("key").value.trim()); };
at("pause").onclick = () => (page.wanted ? pause() : resume());
at("begin").onclick = resume;
at("again").onclick = again;
at("look").onclick = (event) => {
  const pixels = event.currentTarget.getAttribute("aria-pressed") !== "true";
  event.currentTarget.setAttribute("aria-pressed", String(pixels));
  for (const screen of [liveScreen, teacherScreen]) { screen.smooth = !pixels; screen.draw(); }
};
document.addEventListener("visibilitychange", () => {
  if (document.hidden) leave();
  else if (page.wanted) resume();
});

figures();
requestAnimationFrame(frame);
link.connect();
