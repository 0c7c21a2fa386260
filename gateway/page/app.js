// The page as a whole: who asks, where in it one is, and what goes from one view to the next.
import { all, get, takeToken, token } from "./api.js";
import { History } from "./history.js";
import { Job, title } from "./job.js";
import { kindOf, seedOf } from "./jobs.js";
import { html, render, useEffect, useState } from "./lib.js";
import { TokenDialog } from "./token.js";
import { Workshop } from "./workshop.js";

const SIGNS = { auto: "◐", light: "○", dark: "●" };
const THEMES = Object.keys(SIGNS);
const LAST = "gateway-model";
const NAVIGATION = [
  ["create", "Create"],
  ["train", "Train"],
  ["history", "History"],
];

let presets = 0;

/** #/create/owner/name/version and the like -> {view, rest}. */
function read() {
  const [view, ...rest] = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean);
  return { view: view ?? "create", rest };
}

function useRoute() {
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const moved = () => {
      takeToken();
      setRoute(read());
      scrollTo(0, 0);
    };
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  return route;
}

/** Account and models, again with every `turn`. */
function useGateway(turn) {
  const [state, setState] = useState({ account: null, models: [], error: null });
  useEffect(() => {
    let gone = false;
    Promise.all([get("/v1/account"), all("/v1/models")]).then(
      ([account, models]) =>
        gone || setState({ account, models: models.filter((each) => each.latest_version), error: null }),
      (error) => gone || setState((before) => ({ ...before, error })),
    );
    return () => (gone = true);
  }, [turn]);
  return state;
}

function App() {
  const route = useRoute();
  const [turn, setTurn] = useState(0);
  const [asking, setAsking] = useState(false);
  const [preset, setPreset] = useState(null);
  const { account, models, error } = useGateway(turn);
  const unknown = error?.status === 401;
  useEffect(() => void (unknown && setAsking(true)), [error]);
  useEffect(
    () => void (document.title = `${NAVIGATION.find(([name]) => name === route.view)?.[1] ?? "Pictures"} · SDXL`),
    [route.view],
  );
  const go = (place) => {
    setPreset(null);
    location.hash = place;
  };
  const into = (place, given) => {
    setPreset({ ...given, number: ++presets });
    location.hash = place;
  };
  go.again = (job) =>
    into(`#/${kindOf(job) === "training" ? "train" : "create"}/${job.model}/${job.version}`, {
      input: { ...job.input, seed: seedOf(job) },
    });
  go.picture = (job, picture) => into(`#/create/${job.model}/${job.version}`, { input: job.input, picture });
  go.tryIt = (version, job) => {
    setTurn((before) => before + 1); // there is a model, or a version, more
    into(`#/create/${version.replace(":", "/")}`, { trained: job.input ?? {} });
  };
  const done = () => (setAsking(false), setTurn((before) => before + 1));
  return html`
    <a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), document.querySelector("main").focus())}>To the content</a>
    <${Top} view=${route.view} ask=${() => setAsking(true)} />
    <main id="main" tabindex="-1">
      ${error && html`<p class="error" role="alert">${error.message}</p>`}
      ${error && !unknown && html`<button type="button" onClick=${() => setTurn(turn + 1)}>Try again</button>`}
      ${account && html`<${View} key=${account.username} ...${{ ...route, account, models, preset, go }} />`}
    </main>
    ${asking && html`<${TokenDialog} wanted=${unknown} done=${done} close=${() => setAsking(false)} />`}`;
}

function View({ view, rest, account, models, preset, go }) {
  if (view === "history") return html`<${History} />`;
  if (view === "predictions" || view === "trainings")
    return html`<${Detail} key=${rest[0]} kind=${view} id=${rest[0]} go=${go} />`;
  if (!models.length)
    return html`<p class="nothing">No model is served yet. One appears when its worker has started.</p>`;
  const kind = view === "train" ? "training" : "prediction";
  const [owner, name, wanted] = rest;
  const model = owner && name ? `${owner}/${name}` : usual(models, kind);
  if (kind === "prediction") localStorage.setItem(LAST, model);
  return html`<${Workshop} ...${{ kind, models, account, model, wanted, preset, go }} />`;
}

/** The model of last time; for trainings the oldest, which the others were trained from. */
function usual(models, kind) {
  const names = models.map((each) => `${each.owner}/${each.name}`);
  const last = localStorage.getItem(LAST);
  return kind === "prediction" && names.includes(last) ? last : names.at(-1);
}

function Detail({ kind, id, go }) {
  const [job, setJob] = useState(null);
  const [error, setError] = useState("");
  useEffect(() => {
    get(`/v1/${kind}/${id}`).then(setJob, (problem) => setError(problem.message));
    const back = (event) => event.key === "Escape" && !document.querySelector("dialog[open]") && history.back();
    addEventListener("keydown", back);
    return () => removeEventListener("keydown", back);
  }, []);
  if (error) return html`<p class="error" role="alert">${error}</p>`;
  if (!job) return null;
  return html`<section class="detail">
    <h1>${title(job)}</h1>
    <${Job} first=${job} open=${true} again=${go.again} start=${(url) => go.picture(job, url)}
      tryIt=${(version) => go.tryIt(version, job)} />
  </section>`;
}

function Top({ view, ask }) {
  const [theme, setTheme] = useState(localStorage.getItem("gateway-theme") ?? "auto");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("gateway-theme", theme);
  }, [theme]);
  const link = ([name, label]) =>
    html`<a key=${name} href=${`#/${name}`} aria-current=${view === name ? "page" : null}>${label}</a>`;
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  return html`<header class="top">
    <a class="brand" href="#/create"><img src="icon.svg" alt="" width="28" height="28" /><span>SDXL</span></a>
    <nav aria-label="Views">${NAVIGATION.map(link)}</nav>
    <div class="tools">
      <button type="button" class="quiet" onClick=${() => setTheme(next)}
        aria-label=${`Colours: ${theme}; change to ${next}`}>${SIGNS[theme]}</button>
      <button type="button" class="quiet" onClick=${ask}>${token() ? "Token" : "Enter token"}</button>
    </div>
  </header>`;
}

takeToken();
render(html`<${App} />`, document.body);
