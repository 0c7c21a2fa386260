// Where pictures and trainings are made: the form on one side, what comes out on the other.
import { Problem, all, get } from "./api.js";
import { Chooser } from "./chooser.js";
import { spoken } from "./code.js";
import { Form } from "./form.js";
import { Job } from "./job.js";
import { predict, train } from "./jobs.js";
import { html, useEffect, useMemo, useRef, useState } from "./lib.js";
import { CodePanel } from "./panel.js";
import { does, fieldsOf, inputOf, valuesOf } from "./schema.js";

const RECENT = 12; // jobs beside the form
const WORDS = {
  prediction: { title: "Create", verb: "Create", none: "What you make appears here." },
  training: { title: "Train", verb: "Train", none: "Give it 5 to 50 pictures of one thing, and it learns a word for it." },
};

const drafts = new Map(); // what was typed into a form stays while another view is open

function useVersions(model, wanted) {
  const [versions, setVersions] = useState(null);
  const [error, setError] = useState("");
  useEffect(() => {
    let gone = false;
    setVersions(null);
    all(`/v1/models/${model}/versions`).then(
      (found) => gone || setVersions(found),
      (problem) => gone || setError(problem.message),
    );
    return () => (gone = true);
  }, [model]);
  return { versions, error, version: versions?.find((each) => each.id === wanted) ?? versions?.[0] };
}

/** The input that a form begins with: of an earlier job, with a picture that came out, or for what was trained. */
function presetInput(document, fields, preset) {
  if (preset.trained) {
    const { caption_prefix: prefix, token_string: word } = preset.trained;
    const usual = document.components.schemas.TrainingInput?.properties.caption_prefix?.default;
    const prompt = prefix ?? (word ? `a photo of ${word}` : usual);
    return prompt ? { prompt } : {};
  }
  const place = fields.find((field) => field.kind === "file");
  return { ...preset.input, ...(preset.picture && place ? { [place.name]: preset.picture } : {}) };
}

export function Workshop({ kind, models, account, model, wanted, preset, go }) {
  const { versions, version, error } = useVersions(model, wanted);
  const place = kind === "training" ? "train" : "create";
  const choose = (name, id) => go(`#/${place}/${name}${id ? `/${id}` : ""}`);
  const chooser = html`<${Chooser} models=${models} model=${model} versions=${versions ?? []} version=${version?.id} choose=${choose} />`;
  if (error) return html`<section class="workshop"><p class="error" role="alert">${error}</p></section>`;
  if (!versions) return html`<section class="workshop" aria-busy="true"></section>`;
  if (!version) return html`<section class="workshop"><div class="desk">${chooser}<p>${model} has no version yet: train one, or start a worker that serves it.</p></div></section>`;
  if (!does(version.openapi_schema, kind))
    return html`<section class="workshop"><div class="desk">${chooser}<p>This version does no ${kind}s; choose another model.</p></div></section>`;
  return html`<${Desk} key=${`${kind} ${version.id} ${preset?.number}`} ...${{ kind, model, version, preset, account, chooser, go }} />`;
}

function useRecent(kind) {
  const [jobs, setJobs] = useState([]);
  useEffect(() => {
    let gone = false;
    get(`/v1/${kind}s`).then(
      ({ results }) => gone || setJobs((before) => [...before, ...results.filter((job) => !before.some((each) => each.id === job.id))].slice(0, RECENT)),
      () => {}, // the form says what is wrong when it is used
    );
    return () => (gone = true);
  }, [kind]);
  return [jobs, (job) => setJobs((before) => [job, ...before])];
}

function Desk({ kind, model, version, preset, account, chooser, go }) {
  const fields = useMemo(() => fieldsOf(version.openapi_schema, kind), [version.id]);
  const draft = `${kind} ${version.id}`;
  const [values, setValues] = useState(() =>
    preset ? valuesOf(fields, presetInput(version.openapi_schema, fields, preset)) : { ...valuesOf(fields), ...drafts.get(draft) },
  );
  const [name, setName] = useState("");
  const [errors, setErrors] = useState({});
  const [busy, setBusy] = useState(false);
  const [jobs, add] = useRecent(kind);
  const feed = useRef(null);
  useEffect(() => {
    const settled = Object.entries(values).filter(([, value]) => !value?.pending); // what is sent then is lost
    drafts.set(draft, Object.fromEntries(settled));
  }, [values]);
  const set = (field, value) => {
    setValues((before) => ({ ...before, [field]: value }));
    setErrors(({ [field]: _gone, ...others }) => others);
  };
  const input = inputOf(fields, values);
  const destination = name.includes("/") ? name : `${account.username}/${name}`;
  async function submit() {
    setBusy(true);
    setErrors({});
    try {
      if (kind === "training" && !name) throw new Problem(422, { detail: "- input.destination: Give the new model a name." });
      add(await (kind === "training" ? train(model, version.id, input, destination) : predict(version.id, input)));
      if (feed.current.getBoundingClientRect().top > innerHeight / 2) feed.current.scrollIntoView();
    } catch (problem) {
      setErrors(problem.byField([...fields.map((field) => field.name), "destination"]));
    }
    setBusy(false);
  }
  useEffect(() => document.querySelector('.desk [aria-invalid="true"]')?.focus(), [errors]);
  const picture = fields.find((field) => field.kind === "file");
  const start = kind === "prediction" && picture ? (url) => set(picture.name, { url, name: "picture" }) : null;
  const request = { base: location.origin, kind, model, version: version.id, destination: name ? destination : `${account.username}/NAME`, input: spoken(fields, values, input) };
  return html`<section class="workshop">
    <div class="desk">
      <h1 class="unseen">${WORDS[kind].title}</h1>
      ${chooser}
      <${Form} ...${{ fields, values, set, errors, busy, submit }} verb=${WORDS[kind].verb}>
        ${kind === "training" && html`<${Destination} name=${name} owner=${account.username} error=${errors.destination}
          set=${(value) => (setName(value), setErrors({}))} />`}
      <//>
      <${CodePanel} request=${request} />
    </div>
    <div class="feed" ref=${feed} role="region" aria-label="Results">
      ${!jobs.length && html`<p class="nothing">${WORDS[kind].none}</p>`}
      ${jobs.map((job) => html`<${Job} key=${job.id} first=${job} start=${start} again=${(each) => go.again(each)} tryIt=${(made) => go.tryIt(made, job)} />`)}
    </div>
  </section>`;
}

function Destination({ name, owner, error, set }) {
  return html`<div class="field">
    <label for="destination">Name of the new model<span class="needed"> needed</span></label>
    <input id="destination" type="text" autocomplete="off" required value=${name} onInput=${(event) => set(event.target.value.trim())}
      aria-describedby=${error ? "destination-help destination-error" : "destination-help"} aria-invalid=${error ? "true" : null} />
    <p class="help" id="destination-help">It is called ${owner}/${name || "..."}; of a name that is there already, this makes a new version.</p>
    ${error && html`<p class="error" id="destination-error">${error}</p>`}
  </div>`;
}
