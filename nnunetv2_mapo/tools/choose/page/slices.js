// Slices of a question: fetched one by one, those near the shown one ahead of time.

const KEPT = 48; // slices; the largest ones of six candidates take 2 MB each
const AHEAD = 5;

export class Slices {
  constructor(info) {
    this.info = info;
    this.numPlanes = info.shape[0] + info.num_shown + (info.is_region ? 1 : 0);
    this.loaded = new Map(); // place -> promise of planes
  }

  // Promise of the planes of a slice: { image: [channels], candidates: [shown], region }.
  load(place) {
    let planes = this.loaded.get(place);
    if (planes) this.loaded.delete(place); // the most recent is the last
    else planes = this.#fetch(place);
    this.loaded.set(place, planes);
    if (this.loaded.size > KEPT) this.loaded.delete(this.loaded.keys().next().value);
    return planes;
  }

  // Load what a reader who goes on in a direction, 1 or -1, sees next.
  prefetch(place, direction) {
    for (let step = 1; step <= AHEAD; step++)
      for (const next of step <= 2 ? [place + step, place - step] : [place + step * direction])
        if (next >= 0 && next < this.info.shape[1] && !this.loaded.has(next)) this.load(next);
  }

  async #fetch(place) {
    const response = await fetch(`slice?question=${this.info.question}&place=${place}`);
    if (!response.ok) {
      this.loaded.delete(place);
      throw new Error((await response.json()).error);
    }
    const bytes = new Uint8Array(await response.arrayBuffer());
    const size = this.info.shape[2] * this.info.shape[3];
    const planes = Array.from({ length: this.numPlanes }, (_, n) => bytes.subarray(n * size, (n + 1) * size));
    const numChannels = this.info.shape[0];
    return {
      image: planes.slice(0, numChannels),
      candidates: planes.slice(numChannels, numChannels + this.info.num_shown),
      region: this.info.is_region ? planes.at(-1) : null,
      contours: new Map(),
    };
  }
}

// Outline of a mask along the edges of its pixels, as a path in pixels.
export function outline(rows, columns, isInside) {
  const path = new Path2D();
  const at = (row, column) =>
    row >= 0 && row < rows && column >= 0 && column < columns && isInside(row * columns + column);
  for (let row = 0; row <= rows; row++)
    for (let column = 0, start = -1; column <= columns; column++) {
      const isEdge = column < columns && at(row - 1, column) !== at(row, column);
      if (isEdge && start < 0) start = column;
      if (!isEdge && start >= 0) {
        path.moveTo(start, row);
        path.lineTo(column, row);
        start = -1;
      }
    }
  for (let column = 0; column <= columns; column++)
    for (let row = 0, start = -1; row <= rows; row++) {
      const isEdge = row < rows && at(row, column - 1) !== at(row, column);
      if (isEdge && start < 0) start = row;
      if (!isEdge && start >= 0) {
        path.moveTo(column, start);
        path.lineTo(column, row);
        start = -1;
      }
    }
  return path;
}
