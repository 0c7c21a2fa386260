// The gateway's API as the page uses it: one token, JSON in and out, errors in the API's own words.

const KEPT = "gateway-token";

/** An answer that is no success. `status` 0: there was no answer at all. */
export class Problem extends Error {
  constructor(status, { title, detail } = {}, retryAfter = 0) {
    super(detail || title || `The gateway answered ${status}.`);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }

  /** Names of inputs -> what is wrong with them, and under "" what belongs to none of `names`. */
  byField(names) {
    const found = {};
    const add = (name, text) => (found[name] = found[name] ? `${found[name]} ${text}` : text);
    for (const line of this.message.split("\n").filter((each) => each.trim())) {
      const [, path, text] = /^- input(?:\.([\w.[\]]+))?: (.*)$/.exec(line) ?? [null, "", line.replace(/^- /, "")];
      const named =
        path?.split(/[.[]/)[0] || names.find((name) => new RegExp(`(^|\\W)${name}(\\W|$)`).test(text)) || "";
      add(names.includes(named) ? named : "", text);
    }
    return this.status === 422 ? found : { "": this.message };
  }
}

export const token = () => sessionStorage.getItem(KEPT) ?? localStorage.getItem(KEPT) ?? "";

/** `remember`: also after the browser was closed. */
export function keepToken(value, remember) {
  forgetToken();
  (remember ? localStorage : sessionStorage).setItem(KEPT, value);
}

export function forgetToken() {
  sessionStorage.removeItem(KEPT);
  localStorage.removeItem(KEPT);
}

/** Takes the token out of an address that ends in #token=..., where it would stay in the history. */
export function takeToken() {
  const given = /^#token=(.+)$/.exec(location.hash);
  if (!given) return;
  keepToken(decodeURIComponent(given[1]), false);
  history.replaceState(null, "", location.pathname);
}

const authorization = () => (token() ? { Authorization: `Bearer ${token()}` } : {});

function problem(status, text, retryAfter) {
  try {
    return new Problem(status, JSON.parse(text), Number(retryAfter) || 0);
  } catch {
    return new Problem(status);
  }
}

/** What the API answers to a request: parsed JSON, or null where it has no body. Problem. */
export async function call(method, path, body) {
  const sent =
    body === undefined ? {} : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  let answer, text;
  try {
    answer = await fetch(path, {
      method,
      ...sent,
      headers: { ...sent.headers, ...authorization() },
      cache: "no-store",
    });
    text = await answer.text();
  } catch {
    throw new Problem(0, { detail: "The gateway does not answer; is it running?" });
  }
  if (!answer.ok) throw problem(answer.status, text, answer.headers.get("Retry-After"));
  return text ? JSON.parse(text) : null;
}

export const get = (path) => call("GET", path);

/** The rest of an absolute URL of the API: the page asks the origin that it came from. */
export function own(url) {
  const { pathname, search } = new URL(url, location.origin);
  return pathname + search;
}

/** Where the page finds an output: files of the gateway under its own origin, anything else as it is. */
export const shown = (url) => (/^https?:/.test(url) && new URL(url).pathname.startsWith("/v1/files/") ? own(url) : url);

/** Whether the page may load it: what lies elsewhere is only named. */
export function ours(url) {
  if (/^(data|blob):/.test(url)) return true;
  try {
    return new URL(shown(url), location.href).origin === location.origin;
  } catch {
    return false;
  }
}

/** Everything of a list that comes in pages, up to `most` entries. */
export async function all(path, most = 500) {
  const found = [];
  for (let next = path; next && found.length < most;) {
    const page = await get(next);
    found.push(...page.results);
    next = page.next && own(page.next);
  }
  return found;
}

/** Sends a file; `progress` hears the share that is sent, 0 to 1. The file as the API knows it. Problem. */
export function upload(file, progress = () => {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch tells nothing about what is sent
    const form = new FormData();
    form.append("content", file, file.name);
    request.open("POST", "/v1/files");
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = () => reject(new Problem(0, { detail: "The gateway did not take the file; try again." }));
    request.onload = () =>
      request.status < 300
        ? resolve(JSON.parse(request.responseText))
        : reject(problem(request.status, request.responseText));
    request.send(form);
  });
}
