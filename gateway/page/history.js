// What was asked for before, newest first, a page at a time.
import { get, own, shown } from "./api.js";
import { title, useFollowed } from "./job.js";
import { isPicture, outputs, pathOf, told, words } from "./jobs.js";
import { html, useEffect, useRef, useState } from "./lib.js";

const KINDS = [
  ["predictions", "Pictures"],
  ["trainings", "Trainings"],
];

export function History() {
  const [kind, setKind] = useState("predictions");
  return html`<section class="history">
    <h1>History</h1>
    <div class="choice" role="group" aria-label="What to show">
      ${KINDS.map(
        ([name, label]) => html`<button key=${name} type="button" aria-pressed=${name === kind}
        onClick=${() => setKind(name)}>${label}</button>`,
      )}
    </div>
    <${Pages} key=${kind} path=${`/v1/${kind}`} />
  </section>`;
}

function Pages({ path }) {
  const [jobs, setJobs] = useState(null);
  const [next, setNext] = useState(path);
  const [error, setError] = useState("");
  const alive = useRef(true);
  async function more(from) {
    try {
      const page = await get(from);
      if (!alive.current) return;
      setJobs((before) => [...(before ?? []), ...page.results]);
      setNext(page.next && own(page.next));
      setError("");
    } catch (problem) {
      if (alive.current) setError(problem.message);
    }
  }
  useEffect(() => {
    alive.current = true;
    more(path);
    return () => (alive.current = false);
  }, []);
  return html`
    ${error && html`<p class="error" role="alert">${error}</p>`}
    ${jobs && !jobs.length && html`<p class="hint">Nothing yet.</p>`}
    <ul class="grid">${(jobs ?? []).map((job) => html`<li key=${job.id}><${Tile} first=${job} /></li>`)}</ul>
    ${jobs && next && html`<p class="actions"><button type="button" onClick=${() => more(next)}>Show older ones</button></p>`}`;
}

function Tile({ first }) {
  const [job] = useFollowed(first);
  const picture = outputs(job).find(isPicture);
  const place = `#${pathOf(job).replace("/v1", "")}`;
  const sentence = job.data_removed ? "Expired." : told(job);
  return html`<a class=${`tile ${job.status}`} href=${place}>
    ${picture && html`<img src=${shown(picture)} alt="" loading="lazy" decoding="async" />`}
    ${!picture && html`<span class="sentence">${words(job) || sentence}</span>`}
    <span class="title">${title(job)}</span>
    <time datetime=${job.created_at}>${new Date(job.created_at).toLocaleString()}</time>
  </a>`;
}
