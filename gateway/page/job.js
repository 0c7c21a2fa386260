// One prediction or training: how it stands, what came out, with what, and what to do with it.
import { shown } from "./api.js";
import { Curve } from "./curve.js";
import { ENDED, bar, cancel, follow, isPicture, kindOf, losses, outputs, seedOf, told, words } from "./jobs.js";
import { html, useEffect, useRef, useState } from "./lib.js";
import { Samples, useResult } from "./samples.js";
import { fileName } from "./schema.js";

/** The job as it goes on, and a sentence while nothing is heard of it. */
export function useFollowed(first) {
  const [job, setJob] = useState(first);
  const [lost, setLost] = useState("");
  const ended = ENDED.has(job.status);
  useEffect(() => (ended ? undefined : follow(job, setJob, setLost)), [job.id, ended]);
  return [job, setJob, lost];
}

/** `again(job, seed)` and `start(url)` put parameters, or a picture, into the form; `open`: show all there is. */
export function Job({ first, again, start, tryIt, open = false }) {
  const [job, setJob, lost] = useFollowed(first);
  const training = kindOf(job) === "training";
  return html`<article class=${`job ${job.status}`} data-job=${job.id} aria-label=${title(job)}>
    <${Status} job=${job} lost=${lost} setJob=${setJob} />
    ${training ? html`<${Training} job=${job} tryIt=${tryIt} />` : html`<${Results} job=${job} start=${start} />`}
    <footer>
      <p class="title">${open ? "" : html`<a href=${`#/${kindOf(job)}s/${job.id}`}>${title(job)}</a>`}</p>
      <${Facts} job=${job} />
      ${
        again &&
        !job.data_removed &&
        html`<button type="button" class="quiet"
        onClick=${() => again(job)}>Use these parameters again</button>`
      }
    </footer>
    <div class="folds">
      <${Parameters} job=${job} open=${open} />
      ${job.logs && html`<details class="logs"><summary>Log</summary><pre tabindex="0" aria-label="Log">${job.logs}</pre></details>`}
    </div>
  </article>`;
}

export function title(job) {
  if (kindOf(job) === "training") return `Training of ${destinationOf(job) || job.model}`;
  return String(job.input?.prompt ?? job.input?.text ?? job.model);
}

const destinationOf = (job) => job.destination ?? job.output?.version?.split(":")[0] ?? "";

function Facts({ job }) {
  const seed = seedOf(job);
  return html`<p class="facts">${[seed !== null && `seed ${seed}`, job.model].filter(Boolean).join(" · ")}</p>`;
}

function Status({ job, lost, setJob }) {
  const [error, setError] = useState("");
  const ended = ENDED.has(job.status);
  const at = bar(job.logs);
  const share = job.status === "processing" && at ? at.done / Math.max(at.total, 1) : null;
  const stop = () => cancel(job).then(setJob, (problem) => setError(problem.message));
  return html`<header class="status">
    <p class=${job.status === "failed" ? "sentence error" : "sentence"}>${told(job)}</p>
    ${!ended && html`<button type="button" class="quiet" onClick=${stop}>Cancel</button>`}
    ${!ended && html`<progress aria-label="Progress" value=${share} max="1" />`}
    ${lost && html`<p class="error" role="alert">${lost}</p>`}
    ${error && html`<p class="error" role="alert">${error}</p>`}
    <${Spoken} text=${spoken(job, at)} />
  </header>`;
}

// Screen readers hear of quarters, not of every step.
function spoken(job, at) {
  if (job.status !== "processing" || !at) return told(job);
  return `${kindOf(job) === "training" ? "Training" : "Drawing"}: ${Math.floor(at.percent / 25) * 25} percent`;
}

const Spoken = ({ text }) => html`<p class="unseen" role="status" aria-live="polite">${text}</p>`;

function Results({ job, start }) {
  const urls = outputs(job);
  if (job.data_removed) return html`<p class="hint">What came out has expired.</p>`;
  if (words(job)) return html`<pre class="words" tabindex="0">${words(job)}</pre>`;
  const seed = seedOf(job);
  return html`<div class=${`pictures of-${Math.min(urls.length, 4)}`}>
    ${urls.map(
      (url, index) => html`<${Picture} key=${url.slice(0, 200) + index} url=${url} job=${job} start=${start}
      seed=${seed === null ? null : seed + index} />`,
    )}
  </div>`;
}

function Picture({ url, job, seed, start }) {
  const dialog = useRef(null);
  const place = shown(url);
  const name = `${job.id}-${fileName(url)}`;
  if (!isPicture(url)) return html`<a class="button" href=${place} download=${name}>Download ${fileName(url)}</a>`;
  const alt = `${title(job)}${seed === null ? "" : `, seed ${seed}`}`;
  return html`<figure class="picture">
    <button type="button" class="look" onClick=${() => dialog.current.showModal()} aria-label="Show large">
      <img src=${place} alt=${alt} loading="lazy" decoding="async" />
    </button>
    <figcaption>
      ${seed !== null && html`<span class="facts">seed ${seed}</span>`}
      <a class="quiet" href=${place} download=${name}>Download</a>
      ${start && html`<button type="button" class="quiet" onClick=${() => start(url)}>Use as input image</button>`}
    </figcaption>
    <dialog class="large" ref=${dialog} aria-label=${alt} onClick=${(event) => event.target === dialog.current && dialog.current.close()}>
      <img src=${place} alt=${alt} loading="lazy" />
      <form method="dialog"><button autofocus>Close</button></form>
    </dialog>
  </figure>`;
}

function Training({ job, tryIt }) {
  const weights = job.output?.weights ?? (job.status === "succeeded" ? outputs(job)[0] : null);
  const result = useResult(job.status === "succeeded" ? weights : null);
  const points = result?.losses.length ? result.losses : losses(job.logs);
  return html`<div class="trained">
    <${Curve} points=${points} total=${bar(job.logs)?.total} />
    ${result?.grid && html`<${Samples} url=${result.grid} />`}
    ${
      job.status === "succeeded" &&
      html`<p class="actions">
      ${
        tryIt &&
        job.output?.version &&
        html`<button type="button" class="primary"
        onClick=${() => tryIt(job.output.version)}>Try it</button>`
      }
      ${weights && html`<a class="button" href=${shown(weights)} download>Download the weights</a>`}
    </p>`
    }
  </div>`;
}

function Parameters({ job, open }) {
  const entries = Object.entries(job.input ?? {});
  if (!entries.length) return null;
  return html`<details class="parameters" open=${open}>
    <summary>Parameters</summary>
    <dl>
      ${entries.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd><${Value} value=${value} /></dd></div>`)}
      ${
        seedOf(job) !== null &&
        job.input.seed == null &&
        html`<div>
        <dt>seed</dt><dd>${seedOf(job)} <span class="hint">chosen</span></dd>
      </div>`
      }
      <div><dt>version</dt><dd class="code">${job.version}</dd></div>
      <div><dt>id</dt><dd class="code">${job.id}</dd></div>
      <div><dt>made</dt><dd>${new Date(job.created_at).toLocaleString()}</dd></div>
    </dl>
  </details>`;
}

function Value({ value }) {
  if (typeof value === "string" && /^(https?:|data:)/.test(value)) {
    if (isPicture(value)) return html`<img class="given" src=${shown(value)} alt="the picture given" loading="lazy" />`;
    return html`<span class="code">${value.slice(0, 80)}</span>`;
  }
  return typeof value === "string" ? value : JSON.stringify(value);
}
