// The losses of a training: each step faintly, their running mean clearly.
import { html } from "./lib.js";

const WIDTH = 640;
const HEIGHT = 200;
const EDGE = { left: 72, right: 12, top: 12, bottom: 26 };
const POINTS = 400; // more would not be seen

function thinned(points) {
  const size = Math.ceil(points.length / POINTS);
  if (size <= 1) return points;
  return Array.from({ length: Math.ceil(points.length / size) }, (_, index) => {
    const part = points.slice(index * size, (index + 1) * size);
    return [part.at(-1)[0], part.reduce((sum, [, loss]) => sum + loss, 0) / part.length];
  });
}

function smoothed(points) {
  const reach = Math.floor(points.length / 24); // to both sides
  return points.map(([step], index) => {
    const near = points.slice(Math.max(0, index - reach), index + reach + 1);
    return [step, near.reduce((sum, [, loss]) => sum + loss, 0) / near.length];
  });
}

const number = (value) => Number(value.toPrecision(2)).toString();

/** `points`: [[step, loss], ...]; `total`: steps there will be. */
export function Curve({ points, total }) {
  const seen = thinned(points.filter(([, loss]) => Number.isFinite(loss)));
  if (seen.length < 2) return null;
  const values = seen.map(([, loss]) => loss);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const last = Math.max(total ?? 0, seen.at(-1)[0]);
  const x = (step) => EDGE.left + ((step - 1) / Math.max(last - 1, 1)) * (WIDTH - EDGE.left - EDGE.right);
  const y = (loss) => HEIGHT - EDGE.bottom - ((loss - low) / (high - low || 1)) * (HEIGHT - EDGE.top - EDGE.bottom);
  const line = (of) => of.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
  const mean = smoothed(seen);
  const [first, end] = [mean[0], mean.at(-1)];
  const label = `Loss: ${number(first[1])} at step ${first[0]}, about ${number(end[1])} at step ${end[0]}`;
  return html`<figure class="curve">
    <svg viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label=${label}>
      ${[low, (low + high) / 2, high].map(
        (loss) => html`<g key=${loss}>
        <line class="grid" x1=${EDGE.left} x2=${WIDTH - EDGE.right} y1=${y(loss)} y2=${y(loss)} />
        <text x=${EDGE.left - 8} y=${y(loss) + 4} text-anchor="end">${number(loss)}</text>
      </g>`,
      )}
      <text x=${EDGE.left} y=${HEIGHT - 6}>step 1</text>
      <text x=${WIDTH - EDGE.right} y=${HEIGHT - 6} text-anchor="end">${last}</text>
      <polyline class="each" points=${line(seen)} />
      <polyline class="mean" points=${line(mean)} />
      <circle class="now" cx=${x(end[0])} cy=${y(end[1])} r="4" />
    </svg>
    <figcaption>${label}</figcaption>
  </figure>`;
}
