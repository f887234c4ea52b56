// The page's data: texts compressed with gzip in base64, each decompressed once, when it is first needed.

const unpacked = new Map();
const parsed = new Map();

/** Return a promise of the text with an id. */
function unpack(id) {
  if (!unpacked.has(id)) unpacked.set(id, inflate(id));
  return unpacked.get(id);
}

/** Return a promise of the JSON value with an id. */
function load(id) {
  if (!parsed.has(id)) parsed.set(id, inflate(id).then(JSON.parse));
  return parsed.get(id);
}

function inflate(id) {
  if (!window.DecompressionStream) {
    throw new Error("this browser is too old for the report: it cannot unpack gzip (DecompressionStream)");
  }
  const packed = atob(document.getElementById(`data-${id}`).textContent);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
