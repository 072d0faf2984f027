// The screens of the live page, and the clocks by which frames come onto them.

import { keep, rank } from "./small.js";

const BUFFER = 60; // ms for which the first frame waits, so that the next ones may be a little late
const RECOVER = 0.03; // share of the time by which playing hurries, after it had to wait

export class Screen {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.smooth = true;
    new ResizeObserver(() => this.fit()).observe(canvas);
  }

  fit() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight].map((size) => Math.round(size * ratio));
    if (!width || (width === this.canvas.width && height === this.canvas.height)) return;
    Object.assign(this.canvas, { width, height });
    this.draw();
  }

  show(bitmap) {
    this.bitmap?.close();
    this.bitmap = bitmap;
    this.shape(bitmap.width, bitmap.height);
    this.draw();
  }

  shape(width, height) { this.canvas.parentElement.style.aspectRatio = `${width} / ${height}`; }

  draw() {
    if (!this.bitmap) return;
    this.pen.imageSmoothingEnabled = this.smooth;
    this.pen.imageSmoothingQuality = "high"; // cubic: edges stay edges, and no pixel is seen
    this.pen.drawImage(this.bitmap, 0, 0, this.canvas.width, this.canvas.height);
  }
}

// Shows the frames of one source when they are due. Decoding keeps their order.
export class Player {
  constructor(screen, { shown, drew }) {
    Object.assign(this, { screen, shown, drew, decoding: Promise.resolve() });
    this.reset();
  }

  // A new session: whatever still comes of the one before is thrown away.
  reset(fps = 16) {
    this.clear();
    this.epoch = {};
    Object.assign(this, { fps, base: null, shift: 0, slack: [], lateness: [], times: [], ages: [], late: 0, skipped: 0 });
  }

  clear() {
    this.queue?.forEach((frame) => frame.bitmap.close());
    this.queue = [];
  }

  add(header, blobs, arrived = performance.now()) {
    const epoch = this.epoch;
    this.decoding = this.decoding.then(async () => {
      const bitmaps = await Promise.all(blobs.map((blob) => createImageBitmap(blob)));
      if (epoch !== this.epoch) return bitmaps.forEach((bitmap) => bitmap.close());
      this.fps = header.work.fps ?? this.fps;
      const first = this.place(header, performance.now());
      bitmaps.forEach((bitmap, k) => this.queue.push({ bitmap, header, arrived, first: k === 0, time: first + (1000 * k) / this.fps }));
    }).catch((error) => console.error("A frame could not be read.", error));
  }

  // When a chunk's first frame is to be shown. One that is late moves the clock; it is moved back little by little.
  place(header, now) {
    const due = 1000 * header.due;
    this.base ??= now + BUFFER - due;
    const slack = this.base + this.shift + due - now;
    if (slack < 0) {
      this.late += slack < -1000 / this.fps ? 1 : 0;
      this.shift -= slack;
    }
    keep(this.slack, Math.max(0, slack), 8);
    return this.base + this.shift + due;
  }

  step(now, elapsed) {
    if (this.shift > 0 && Math.min(...this.slack) > 2000 / this.fps) {
      const hurry = Math.min(this.shift, RECOVER * elapsed);
      this.shift -= hurry;
      this.queue.forEach((frame) => { frame.time -= hurry; });
    }
    let next = null;
    while (this.queue.length && this.queue[0].time <= now) {
      if (next) { this.skipped += 1; next.bitmap.close(); }
      next = this.queue.shift();
      if (next.first) this.shown(next.header);
    }
    if (next) this.draw(next, now);
  }

  draw(frame, now) {
    this.screen.show(frame.bitmap);
    keep(this.lateness, now - frame.time, 240);
    keep(this.ages, frame.header.waited_ms + now - frame.arrived, 60);
    keep(this.times, now, 240);
    this.drew(frame.header, now);
  }

  get shownFps() {
    const recent = this.times.filter((time) => time > performance.now() - 2000);
    return recent.length > 1 ? (1000 * (recent.length - 1)) / (recent.at(-1) - recent[0]) : NaN;
  }

  get jitter() { return this.lateness.length > 8 ? rank(this.lateness, 0.99) - rank(this.lateness, 0.5) : NaN; }
}

// The teacher's clips are shown as they come: its lateness is the point.
export class TeacherPlayer extends Player {
  place(header, now) {
    const last = this.queue.at(-1);
    return last ? last.time + 1000 / this.fps : now;
  }
}
