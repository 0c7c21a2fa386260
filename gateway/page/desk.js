// The form of one version on one side, what comes out of it on the other.
import { Problem, get } from "./api.js";
import { spoken } from "./code.js";
import { Form } from "./form.js";
import { Job } from "./job.js";
import { predict, train } from "./jobs.js";
import { html, useEffect, useMemo, useRef, useState } from "./lib.js";
import { CodePanel } from "./panel.js";
import { fieldsOf, inputOf, valuesOf } from "./schema.js";

const RECENT = 12; // jobs beside the form
const NEEDED = "- input.destination: Give the new model a name.";
const WORDS = {
  prediction: { title: "Create", none: "What you make appears here." },
  training: { title: "Train", none: "Give it 5 to 50 pictures of one thing, and it learns a word for it." },
};

const drafts = new Map(); // what was typed into a form stays while another view is open

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

/** What is in the form: {fields, values, set}. */
function useValues({ kind, version, preset }) {
  const document = version.openapi_schema;
  const draft = `${kind} ${version.id}`;
  const fields = useMemo(() => fieldsOf(document, kind), [version.id]);
  const [values, setValues] = useState(() => {
    if (preset) return valuesOf(fields, presetInput(document, fields, preset));
    return { ...valuesOf(fields), ...drafts.get(draft) };
  });
  useEffect(() => {
    const settled = Object.entries(values).filter(([, value]) => !value?.pending); // what is being sent is lost
    drafts.set(draft, Object.fromEntries(settled));
  }, [values]);
  const set = (field, value) => setValues((before) => ({ ...before, [field]: value }));
  return { fields, values, set };
}

/** The newest jobs of a kind, and what puts one before them. */
function useRecent(kind) {
  const [jobs, setJobs] = useState([]);
  const merge = (more) => (before) =>
    [...before, ...more.filter((job) => before.every((each) => each.id !== job.id))].slice(0, RECENT);
  useEffect(() => {
    let gone = false;
    get(`/v1/${kind}s`).then(
      ({ results }) => gone || setJobs(merge(results)),
      () => {}, // the form says what is wrong when it is used
    );
    return () => (gone = true);
  }, [kind]);
  return [jobs, (job) => setJobs((before) => [job, ...before])];
}

/** Sends the form: {submit, busy, errors, forgive}. `make` returns the job, `made` hears of it. */
function useSubmit(make, made, names) {
  const [{ errors, tries, busy }, setState] = useState({ errors: {}, tries: 0, busy: false });
  useEffect(() => document.querySelector('.desk [aria-invalid="true"]')?.focus(), [tries]);
  async function submit() {
    setState({ errors: {}, tries, busy: true });
    try {
      made(await make());
      setState({ errors: {}, tries, busy: false });
    } catch (problem) {
      setState({ errors: problem.byField(names), tries: tries + 1, busy: false });
    }
  }
  const forgive = (name) =>
    setState((before) => ({ ...before, errors: { ...before.errors, [name]: undefined, "": undefined } }));
  return { submit, busy, errors, forgive };
}

export function Desk({ kind, model, version, preset, account, chooser, go }) {
  const { fields, values, set } = useValues({ kind, version, preset });
  const [name, setName] = useState("");
  const [jobs, add] = useRecent(kind);
  const feed = useRef(null);
  const training = kind === "training";
  const input = inputOf(fields, values);
  const destination = name.includes("/") ? name : `${account.username}/${name}`;
  async function make() {
    if (!training) return predict(version.id, input);
    if (!name) throw new Problem(422, { detail: NEEDED });
    return train(model, version.id, input, destination);
  }
  function made(job) {
    add(job);
    if (feed.current.getBoundingClientRect().top > innerHeight / 2) feed.current.scrollIntoView();
  }
  const names = [...fields.map((field) => field.name), "destination"];
  const { submit, busy, errors, forgive } = useSubmit(make, made, names);
  const change = (field, value) => (set(field, value), forgive(field));
  const rename = (value) => (setName(value), forgive("destination"));
  const picture = training ? null : fields.find((field) => field.kind === "file");
  const start = picture && ((url) => change(picture.name, { url, name: "picture" }));
  const said = { destination: name ? destination : `${account.username}/NAME`, input: spoken(fields, values, input) };
  const request = { base: location.origin, kind, model, version: version.id, ...said };
  return html`<section class="workshop">
    <div class="desk">
      <h1 class="unseen">${WORDS[kind].title}</h1>
      ${chooser}
      <${Form} ...${{ fields, values, errors, busy, submit }} set=${change} verb=${WORDS[kind].title}>
        ${training && html`<${Destination} name=${name} owner=${account.username} error=${errors.destination} set=${rename} />`}
      <//>
      <${CodePanel} request=${request} />
    </div>
    <div class="feed" ref=${feed} role="region" aria-label="Results">
      ${!jobs.length && html`<p class="nothing">${WORDS[kind].none}</p>`}
      ${jobs.map(
        (job) => html`<${Job} key=${job.id} first=${job} start=${start} again=${go.again}
          tryIt=${(made) => go.tryIt(made, job)} />`,
      )}
    </div>
  </section>`;
}

function Destination({ name, owner, error, set }) {
  const described = error ? "destination-help destination-error" : "destination-help";
  return html`<div class="field">
    <label for="destination">Name of the new model<span class="needed"> needed</span></label>
    <input id="destination" type="text" autocomplete="off" required value=${name}
      onInput=${(event) => set(event.target.value.trim())}
      aria-describedby=${described} aria-invalid=${error ? "true" : null} />
    <p class="help" id="destination-help">
      It is called ${name.includes("/") ? name : `${owner}/${name || "..."}`}; of a name that is there already, this makes a new version.
    </p>
    ${error && html`<p class="error" id="destination-error">${error}</p>`}
  </div>`;
}
