// The figures of the live page, each with its last minute.

import { keep, make, mean, number, write } from "./small.js";

const SAMPLES = 60; // of a sparkline, one a second

// Name, unit, digits, and where the value and its hint come from. `all` is what was measured last; a value of null is
// not told by this model.
export const FIGURES = [
  { name: "Frames a second", digits: 1, value: (all) => all.player.shownFps, hint: (all) => `of ${number(all.player.fps)}; it could be ${number(all.live.fps)}` },
  { name: "First frame", unit: "ms", value: (all) => all.first, hint: (all) => `${number(1000 * (all.live.first_frame_s ?? NaN))} ms of it by the model` },
  { name: "Made to shown", unit: "ms", value: (all) => (all.player.ages.length ? mean(all.player.ages) + all.trip / 2 : NaN), hint: (all) => `${number(all.trip / 2, 1)} ms of it on the way` },
  { name: "Jitter", unit: "ms", digits: 1, value: (all) => all.player.jitter, hint: (all) => `${number(all.live.jitter_ms, 1)} ms at the model` },
  { name: "Missed deadlines", value: (all) => all.live.missed, hint: (all) => `${all.player.late} late here, ${(all.viewer.dropped ?? 0) + all.player.skipped} dropped` },
  { name: "Steps", value: (all) => all.work.steps ?? all.live.steps, hint: (all) => `${all.work.share < 1 ? "of what moves, " : ""}${number(all.work.denoise_ms)} ms, decoding ${number(all.work.decode_ms)}` },
  { name: "Accuracy", unit: "%", value: (all) => (typeof all.live.accuracy === "number" ? 100 * all.live.accuracy : null), hint: () => "of what was asked for" },
  { name: "Teacher's frames/s", digits: 2, value: (all) => (all.teacher ? all.teacherFps || NaN : null), hint: (all) => `${all.teacherWork.steps ?? "–"} steps` },
];

export class Tile {
  constructor(figure, list) {
    this.figure = figure;
    this.samples = [];
    this.value = make("dd", { class: "value" });
    this.hint = make("dd", { class: "hint" });
    this.plot = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.plot.setAttribute("viewBox", `0 0 ${SAMPLES - 1} 28`);
    this.plot.setAttribute("preserveAspectRatio", "none");
    this.plot.setAttribute("aria-hidden", "true");
    this.box = make("div", { class: "tile" }, make("dt", {}, figure.name), this.value, this.hint, this.plot);
    list.append(this.box);
  }

  update(all, turned) {
    const value = this.figure.value(all);
    this.box.hidden = value === null;
    keep(this.samples, { value, turned }, SAMPLES);
    this.value.replaceChildren(number(value, this.figure.digits), ...(this.figure.unit ? [make("small", {}, this.figure.unit)] : []));
    write(this.hint, Number.isFinite(value) ? this.figure.hint(all) : "");
    this.draw();
  }

  draw() {
    const values = this.samples.map(({ value }) => value).filter(Number.isFinite);
    const [low, high] = [Math.min(0, ...values), Math.max(1e-6, ...values) * 1.1];
    const start = SAMPLES - this.samples.length;
    const points = this.samples.flatMap(({ value }, k) => (Number.isFinite(value) ? [`${start + k},${(27 - (26 * (value - low)) / (high - low)).toFixed(2)}`] : []));
    const shape = (tag, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, given] of Object.entries(attributes)) element.setAttribute(name, given);
      return element;
    };
    const turns = this.samples.flatMap(({ turned }, k) => (turned ? [shape("line", { x1: start + k, x2: start + k, y1: 0, y2: 28 })] : []));
    this.plot.replaceChildren(...turns, shape("polyline", { points: points.join(" ") }));
  }
}
