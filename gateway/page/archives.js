// Several files -> one zip (stored: pictures are compressed already), and what lies in a tar on the server.

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function checksum(bytes) {
  let value = ~0;
  for (const byte of bytes) value = (value >>> 8) ^ TABLE[(value ^ byte) & 255];
  return ~value >>> 0;
}

const UTF8 = 1 << 11; // flag: names are UTF-8
const DAY = 0x21; // 1 January 1980, the first that a zip can say

function record(signature, fields, ...rest) {
  const bytes = new Uint8Array(4 + fields.reduce((sum, [size]) => sum + size, 0));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, signature, true);
  let at = 4;
  for (const [size, value] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return new Blob([bytes, ...rest]);
}

/** A zip of files with different names. */
export async function zip(files, name) {
  const parts = [];
  const listed = [];
  let at = 0;
  for (const file of files) {
    const title = new TextEncoder().encode(file.name);
    const content = new Uint8Array(await file.arrayBuffer());
    const sizes = [
      [4, checksum(content)],
      [4, content.length],
      [4, content.length],
      [2, title.length],
      [2, 0],
    ];
    const common = [[2, 20], [2, UTF8], [2, 0], [2, 0], [2, DAY], ...sizes];
    const local = record(0x04034b50, common, title);
    listed.push(record(0x02014b50, [[2, 20], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, at]], title));
    parts.push(local, content);
    at += local.size + content.length;
  }
  const index = new Blob(listed);
  const count = files.length;
  const end = record(0x06054b50, [
    [2, 0],
    [2, 0],
    [2, count],
    [2, count],
    [4, index.size],
    [4, at],
    [2, 0],
  ]);
  return new File([...parts, index, end], name, { type: "application/zip" });
}

const BLOCK = 512;

async function range(url, from, size) {
  const answer = await fetch(url, { headers: { Range: `bytes=${from}-${from + size - 1}` } });
  return answer.status === 206 ? answer : null;
}

/** [{name, size, at}] of a plain tar behind a URL; its contents, which may be gigabytes, stay where they are. */
export async function entries(url, most = 100) {
  const found = [];
  const text = new TextDecoder();
  for (let at = 0; found.length < most;) {
    const answer = await range(url, at, BLOCK);
    const header = answer && new Uint8Array(await answer.arrayBuffer());
    if (!header || header.length < BLOCK || !header[0]) return found;
    const field = (start, size) => text.decode(header.subarray(start, start + size)).split("\0")[0];
    const size = parseInt(field(124, 12).trim(), 8);
    if (!(size >= 0)) return found;
    found.push({ name: field(0, 100), size, at: at + BLOCK });
    at += BLOCK + Math.ceil(size / BLOCK) * BLOCK;
  }
  return found;
}

/** One entry of it. */
export async function content(url, entry, type) {
  const answer = await range(url, entry.at, entry.size);
  return answer && new Blob([await answer.arrayBuffer()], { type });
}
