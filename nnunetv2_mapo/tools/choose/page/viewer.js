// Panels side by side that show the same place: slice, zoom, window and level are common to all.

import { Slices, outline } from "./slices.js";

export const COLOURS = ["#ffd84d", "#4dd2ff", "#ff7eb8", "#86f59b", "#c8a2ff", "#ffa04d"];
const MOST_ZOOM = 40;

export class Viewer {
  constructor(onSlice) {
    this.onSlice = onSlice; // called with the place that is shown
    this.canvases = [];
    this.bitmap = document.createElement("canvas");
    this.resized = new ResizeObserver(() => this.draw());
  }

  // Show a question on canvases, one for each candidate; resolves when the first slice is drawn.
  async open(info, canvases, slices = new Slices(info)) {
    this.resized.disconnect();
    Object.assign(this, { info, canvases, slices, planes: null, hidden: false, differing: false });
    this.channel = Math.min(this.channel ?? 0, info.shape[0] - 1);
    this.resetWindow();
    this.fit();
    if (info.is_region) this.fitDisputed();
    for (const canvas of canvases) {
      this.resized.observe(canvas);
      this.#listen(canvas);
    }
    this.place = -1;
    const most = Math.max(...info.disputed);
    await this.go(info.disputed.indexOf(most));
  }

  get numSlices() { return this.info.shape[1]; }

  async go(place) {
    place = Math.min(Math.max(place, 0), this.numSlices - 1);
    if (place === this.place) return;
    const direction = place < this.place ? -1 : 1;
    this.place = place;
    this.onSlice(place);
    const planes = await this.slices.load(place);
    if (this.place !== place) return; // scrolled on meanwhile
    this.planes = planes;
    this.#paint();
    this.draw();
    this.slices.prefetch(place, direction);
  }

  // Next, or with direction -1 previous slice in which candidates differ; around at the end.
  goDisputed(direction) {
    for (let step = 1; step <= this.numSlices; step++) {
      const place = (this.place + step * direction + 2 * this.numSlices) % this.numSlices;
      if (this.info.disputed[place] > 0) return this.go(place);
    }
  }

  // Window and level -------------------------------------------------------------------------------

  resetWindow() { this.window = { low: 0, width: 255 }; }

  changeWindow(contrast, brightness) {
    const { low, width } = this.window;
    const middle = low + width / 2 - brightness * 255;
    const changed = Math.min(Math.max(width * (1 - contrast), 4), 1020);
    this.window = { low: middle - changed / 2, width: changed };
    this.#paint();
    this.draw();
  }

  nextChannel() {
    if (this.info.is_rgb) return;
    this.channel = (this.channel + 1) % this.info.shape[0];
    this.#paint();
    this.draw();
  }

  // Pixels of the slice, shared by all panels.
  #paint() {
    if (!this.planes) return;
    const [, , rows, columns] = this.info.shape;
    const { low, width } = this.window;
    const grey = new Uint8ClampedArray(256).map((_, value) => ((value - low) / width) * 255);
    const pixels = new ImageData(columns, rows);
    const image = this.planes.image;
    const channels = this.info.is_rgb ? image : [image[this.channel], image[this.channel], image[this.channel]];
    for (let at = 0, to = 0; at < rows * columns; at++) {
      pixels.data[to++] = grey[channels[0][at]];
      pixels.data[to++] = grey[channels[1][at]];
      pixels.data[to++] = grey[channels[2][at]];
      pixels.data[to++] = 255;
    }
    this.bitmap.width = columns;
    this.bitmap.height = rows;
    this.bitmap.getContext("2d").putImageData(pixels, 0, 0);
  }

  // Zoom and pan -----------------------------------------------------------------------------------

  fit() {
    const [, , rows, columns] = this.info.shape;
    this.view = { x: columns / 2, y: rows / 2, zoom: 1 };
    this.draw();
  }

  // Zoom to what differs, with three times as much around it.
  fitDisputed() {
    const [top, bottom, left, right] = this.info.box;
    const [, , rows, columns] = this.info.shape;
    const share = Math.max((bottom - top + 1) / rows, (right - left + 1) / columns);
    const zoom = Math.min(Math.max(1 / (3 * share), 1), 12);
    this.#look((left + right + 1) / 2, (top + bottom + 1) / 2, zoom);
  }

  zoomBy(factor, canvas, event) {
    const { zoom } = this.view;
    const after = Math.min(Math.max(zoom * factor, 1), MOST_ZOOM);
    if (canvas) { // the pixel under the pointer stays
      const scale = this.#scale(canvas);
      const box = canvas.getBoundingClientRect();
      const [dx, dy] = [event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2];
      this.view.x += (dx / scale.x) * (1 - zoom / after);
      this.view.y += (dy / scale.y) * (1 - zoom / after);
    }
    this.#look(this.view.x, this.view.y, after);
  }

  // Move by screen pixels.
  pan(dx, dy, canvas = this.canvases[0]) {
    const scale = this.#scale(canvas);
    this.#look(this.view.x - dx / scale.x, this.view.y - dy / scale.y, this.view.zoom);
  }

  // Look at a pixel, as far as the image reaches.
  #look(x, y, zoom) {
    const [, , rows, columns] = this.info.shape;
    const within = (at, size) => Math.min(Math.max(at, size / (2 * zoom)), size - size / (2 * zoom));
    this.view = { x: within(x, columns), y: within(y, rows), zoom };
    this.draw();
  }

  // Screen pixels of a pixel of the image.
  #scale(canvas) {
    const [, , rows, columns] = this.info.shape;
    const height = rows * this.info.aspect;
    const fit = Math.min(canvas.clientWidth / columns, canvas.clientHeight / height) * this.view.zoom;
    return { x: fit, y: fit * this.info.aspect };
  }

  // Drawing ----------------------------------------------------------------------------------------

  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      if (this.planes) this.canvases.forEach((canvas, number) => this.#drawPanel(canvas, number));
    });
  }

  #drawPanel(canvas, number) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.style.touchAction = this.view.zoom > 1 ? "none" : "pan-y"; // else a finger scrolls the page
    const scale = this.#scale(canvas);
    const matrix = new DOMMatrix([
      scale.x * ratio, 0, 0, scale.y * ratio,
      width / 2 - this.view.x * scale.x * ratio, height / 2 - this.view.y * scale.y * ratio,
    ]);
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    context.setTransform(matrix);
    context.imageSmoothingEnabled = scale.x < 6;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.bitmap, 0, 0);
    context.setTransform(1, 0, 0, 1, 0, 0);
    const stroke = (path, colour, lineWidth, dash = []) => {
      const moved = new Path2D();
      moved.addPath(path, matrix);
      context.setLineDash(dash.map((length) => length * ratio));
      for (const [style, extra] of [["rgb(0 0 0 / 45%)", 1.6], [colour, 0]]) {
        context.strokeStyle = style;
        context.lineWidth = (lineWidth + extra) * ratio;
        context.stroke(moved);
      }
    };
    context.lineCap = "square";
    if (this.info.is_region || this.differing) { // below the contours, which it must not hide
      stroke(this.#marked(), "rgb(255 255 255 / 85%)", this.info.is_region ? 2.8 : 1.2, [5, 6]);
    }
    if (!this.hidden)
      for (const [colour, path] of this.#contours(number)) stroke(path, colour, 1.7);
  }

  // Outline of each label of a candidate.
  #contours(number) {
    const cached = this.planes.contours;
    if (!cached.has(number)) {
      const [, , rows, columns] = this.info.shape;
      const plane = this.planes.candidates[number];
      const present = new Set(plane);
      cached.set(number, this.info.values.flatMap((value, place) =>
        value !== 0 && present.has(place)
          ? [[colourOf(value), outline(rows, columns, (at) => plane[at] === place)]]
          : []));
    }
    return cached.get(number);
  }

  // Outline of the region that is asked about, or of where any two candidates differ.
  #marked() {
    const cached = this.planes.contours;
    if (!cached.has("marked")) {
      const [, , rows, columns] = this.info.shape;
      const { region, candidates } = this.planes;
      const differs = (at) => candidates.some((plane) => plane[at] !== candidates[0][at]);
      cached.set("marked", outline(rows, columns, region ? (at) => region[at] > 0 : differs));
    }
    return cached.get("marked");
  }

  // Pointers ---------------------------------------------------------------------------------------

  #listen(canvas) {
    const pointers = new Map();
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey || this.numSlices === 1) this.zoomBy(Math.exp(-event.deltaY / 300), canvas, event);
      else this.go(this.place + Math.sign(event.deltaY));
    }, { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => this.fit());
    canvas.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, event);
      canvas.setPointerCapture(event.pointerId);
    });
    for (const end of ["pointerup", "pointercancel"])
      canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
      const other = [...pointers.values()].find((each) => each.pointerId !== event.pointerId);
      if (other) {
        const apart = (each) => Math.hypot(each.clientX - other.clientX, each.clientY - other.clientY);
        this.zoomBy(apart(event) / Math.max(apart(before), 1), canvas, event);
      } else if (before.buttons === 2) this.changeWindow(dx / 300, -dy / 600);
      else this.pan(dx, dy, canvas);
      pointers.set(event.pointerId, event);
    });
  }
}

export const colourOf = (value) => COLOURS[(value - 1 + COLOURS.length) % COLOURS.length];
