// Staff's QR code carries the pairing code behind '#', which no server sees: into the field with it,
// and out of the address.
const field = document.querySelector("#code");
const scanned = decodeURIComponent(location.hash.slice(1));
if (field && /^[0-9A-Z]{4}-[0-9A-Z]{4}$/.test(scanned)) {
  field.value = scanned;
  history.replaceState(null, "", location.pathname);
}
