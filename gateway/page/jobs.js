// Predictions and trainings: asking for them, following them, and what their logs tell.
import { Problem, call, get, ours } from "./api.js";

export const ENDED = new Set(["succeeded", "failed", "canceled", "aborted"]);
const PAUSE = { prediction: 300, training: 1000 }; // milliseconds between two looks
const AWAY = 5000; // while nobody looks at the page

export const kindOf = (job) => ((job.urls?.get ?? "").includes("/trainings/") ? "training" : "prediction");
export const pathOf = (job) => `/v1/${kindOf(job)}s/${job.id}`;

/** Starts a prediction. */
export const predict = (version, input) => call("POST", "/v1/predictions", { version, input });

/** Starts a training into `destination` (owner/name), which is made if it is not there. */
export async function train(model, version, input, destination) {
  const [owner, name] = destination.split("/");
  try {
    await get(`/v1/models/${owner}/${name}`);
  } catch (error) {
    if (error.status !== 404) throw error;
    await call("POST", "/v1/models", { owner, name, visibility: "private", hardware: "cpu" });
  }
  return call("POST", `/v1/models/${model}/versions/${version}/trainings`, { destination, input });
}

export const cancel = (job) => call("POST", `${pathOf(job)}/cancel`);

/** Calls `changed` with the job as it goes on, until it has ended; `lost` with a sentence while nothing is heard of it,
 * and with "" when it is heard of again. Returns what stops it. */
export function follow(job, changed, lost = () => {}) {
  let timer;
  let stopped = false;
  let away = 0;
  const wait = (milliseconds) => {
    if (!stopped) timer = setTimeout(look, milliseconds);
  };
  async function look() {
    try {
      const now = await get(pathOf(job));
      if (stopped) return;
      lost("");
      changed(now);
      away = 0;
      if (!ENDED.has(now.status)) wait(document.hidden ? AWAY : PAUSE[kindOf(job)]);
    } catch (error) {
      if (stopped) return;
      const passing = error instanceof Problem && (error.status === 0 || error.status === 429 || error.status >= 500);
      lost(passing ? "The gateway does not answer; trying again." : error.message);
      if (passing) wait(error.retryAfter * 1000 || Math.min(AWAY, 500 * 2 ** away++));
    }
  }
  wait(PAUSE.prediction);
  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}

const BAR = /^\s*(\d+)%\s*\|.+?\|\s*(\d+)\/(\d+)/; // what Replicate's clients look for
const LOSS = /\|\s*(\d+)\/\d+.*\bloss=([\d.]+(?:e[+-]?\d+)?)/;

/** The last bar in the logs, {percent, done, total}, or null. */
export function bar(logs) {
  for (const line of (logs ?? "").split(/[\r\n]+/).reverse()) {
    const match = BAR.exec(line);
    if (match) return { percent: Number(match[1]), done: Number(match[2]), total: Number(match[3]) };
  }
  return null;
}

/** [[step, loss], ...] as the logs tell it. */
export function losses(logs) {
  const found = new Map();
  for (const line of (logs ?? "").split(/[\r\n]+/)) {
    const match = LOSS.exec(line);
    if (match) found.set(Number(match[1]), Number(match[2]));
  }
  return [...found];
}

/** The seed that was used: the input's, or the one that the logs name; null if neither does. */
export function seedOf(job) {
  const told = /^Using seed: (\d+)/m.exec(job.logs ?? "");
  return told ? Number(told[1]) : (job.input?.seed ?? null);
}

/** URLs of what came out, whatever the output's shape. */
export function outputs(job) {
  const found = [];
  const look = (value) => {
    if (typeof value === "string" && /^(https?:|data:)/.test(value)) found.push(value);
    else if (value && typeof value === "object") Object.values(value).forEach(look);
  };
  look(job.output);
  return found;
}

/** Text that came out instead of files. */
export function words(job) {
  const value = job.output;
  if (value == null || outputs(job).length) return "";
  if (Array.isArray(value) && value.every((each) => typeof each === "string")) return value.join("");
  return typeof value === "string" ? value : JSON.stringify(value, null, 1);
}

export const isPicture = (url) => ours(url) && /^data:image\/|\.(png|jpe?g|webp|gif|avif)(\?|$)/i.test(url);

/** How a job stands, in one sentence. */
export function told(job) {
  const training = kindOf(job) === "training";
  const at = bar(job.logs);
  const sentences = {
    starting: "Waiting for a worker.",
    processing: at
      ? `${training ? "Training" : "Drawing"}: step ${at.done} of ${at.total}.`
      : `${training ? "Preparing" : "Starting"}.`,
    succeeded: `Done${seconds(job)}.`,
    failed: job.error || "It failed.",
    canceled: "Canceled.",
    aborted: "Its time was over before it began.",
  };
  return sentences[job.status] ?? job.status;
}

function seconds(job) {
  const took = job.metrics?.predict_time;
  if (took == null) return "";
  return took < 100 ? ` in ${took.toFixed(1)} s` : ` in ${Math.round(took / 60)} min`;
}
