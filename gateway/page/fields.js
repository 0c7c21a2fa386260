// One input of the form: its label, its control, what is said of it.
import { FileControl, PicturesControl } from "./files.js";
import { html, useId } from "./lib.js";
import { slides, stepOf } from "./schema.js";

const range = ({ least, most }) =>
  least !== null && most !== null
    ? `${least} to ${most}`
    : least !== null
      ? `${least} or more`
      : most !== null
        ? `up to ${most}`
        : "";

const typed = (set) => (event) => set(event.target.value);

function Long({ value, set, given }) {
  return html`<textarea ...${given} rows="2" value=${value} onInput=${typed(set)} />`;
}

function Text({ field, value, set, given }) {
  return html`<input ...${given} type="text" autocomplete="off" value=${value} onInput=${typed(set)}
    placeholder=${field.initial === null ? "blank" : ""} />`;
}

function Secret({ value, set, given }) {
  return html`<input ...${given} type="password" autocomplete="off" value=${value} onInput=${typed(set)} />`;
}

function Number_({ field, value, set, given }) {
  const { least: min, most: max, whole, initial } = field;
  const number = html`<input ...${given} type="number" inputmode=${whole ? "numeric" : "decimal"} min=${min} max=${max}
    step=${whole ? 1 : "any"} value=${value} onInput=${typed(set)} placeholder=${initial === null ? "blank" : ""} />`;
  if (!slides(field)) return number;
  return html`<span class="slider">
    <input type="range" aria-label=${`${field.label}, slider`} min=${min} max=${max} step=${stepOf(field)}
      value=${value === "" ? initial : value} onInput=${typed(set)} />
    ${number}
  </span>`;
}

function Choice({ field, value, set, given }) {
  return html`<select ...${given} onChange=${typed(set)} value=${value}>
    ${field.choices.map((each) => html`<option value=${each} selected=${each === value}>${String(each)}</option>`)}
  </select>`;
}

function Switch({ value, set, given }) {
  return html`<input ...${given} type="checkbox" role="switch" checked=${value} onChange=${(event) => set(event.target.checked)} />`;
}

function List({ value, set, given }) {
  return html`<textarea ...${given} rows="2" placeholder="one a line" value=${value} onInput=${typed(set)} />`;
}

const CONTROLS = {
  long: Long,
  text: Text,
  secret: Secret,
  number: Number_,
  choice: Choice,
  switch: Switch,
  list: List,
  file: FileControl,
  files: (props) => html`<${PicturesControl} ...${props} separate=${true} />`,
  archive: PicturesControl,
};
const NARROW = new Set(["number", "choice", "file"]);

export function Field({ field, value, set, error }) {
  const id = useId();
  const Control = CONTROLS[field.kind];
  const help = [field.help, slides(field) || field.kind !== "number" ? "" : range(field)].filter(Boolean).join(" ");
  const described = [help && `${id}-help`, error && `${id}-error`].filter(Boolean).join(" ");
  const given = {
    id,
    name: field.name,
    "aria-describedby": described || null,
    "aria-invalid": error ? "true" : null,
    required: field.required,
  };
  return html`<div class=${`field ${field.kind} ${NARROW.has(field.kind) ? "narrow" : ""}`} data-field=${field.name}>
    <label for=${id}>${field.label}${field.required && html`<span class="needed"> needed</span>`}</label>
    <${Control} field=${field} value=${value} set=${set} given=${given} />
    ${help && html`<p class="help" id=${`${id}-help`}>${help}</p>`}
    ${error && html`<p class="error" id=${`${id}-error`}>${error}</p>`}
  </div>`;
}
