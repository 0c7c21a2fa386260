// Where pictures and trainings are made: which model and version, and the desk for it.
import { all } from "./api.js";
import { Chooser } from "./chooser.js";
import { Desk } from "./desk.js";
import { html, useEffect, useState } from "./lib.js";
import { does } from "./schema.js";

function useVersions(model, wanted) {
  const [known, setKnown] = useState({ model: null, versions: [], error: "" });
  const fresh = known.model === model && (!wanted || known.versions.some((each) => each.id === wanted));
  useEffect(() => {
    if (fresh) return undefined;
    let gone = false;
    all(`/v1/models/${model}/versions`).then(
      (versions) => gone || setKnown({ model, versions, error: "" }),
      (problem) => gone || setKnown({ model, versions: [], error: problem.message }),
    );
    return () => (gone = true);
  }, [model, wanted]);
  return known.model === model ? known : null;
}

/** `wanted`: the id of a version; the newest if there is none such. */
export function Workshop({ kind, models, account, model, wanted, preset, go }) {
  const known = useVersions(model, wanted);
  if (!known) return html`<section class="workshop" aria-busy="true"></section>`;
  const version = known.versions.find((each) => each.id === wanted) ?? known.versions[0];
  const place = kind === "training" ? "train" : "create";
  const choose = (name, id) => go(`#/${place}/${name}${id ? `/${id}` : ""}`);
  const chooser = html`<${Chooser} ...${{ models, model, versions: known.versions, version: version?.id, choose }} />`;
  const wrong = known.error || unfit(model, version, kind);
  if (wrong) return html`<section class="workshop"><div class="desk">${chooser}<p>${wrong}</p></div></section>`;
  const given = { kind, model, version, preset, account, chooser, go };
  return html`<${Desk} key=${`${kind} ${version.id} ${preset?.number}`} ...${given} />`;
}

function unfit(model, version, kind) {
  if (!version) return `${model} has no version yet: train one, or start a worker that serves it.`;
  return does(version.openapi_schema, kind) ? "" : `This version does no ${kind}s; choose another model.`;
}
