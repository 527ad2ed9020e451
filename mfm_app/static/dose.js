// props.value is JSON from Python: {low, high, seen: {dose: cells}, dose, note, revision}; it goes back with another
// dose. A dose set here after Python was asked has a higher revision, and stays.
const find = selector => element.querySelector(selector);
const [box, slide, number, ticks, note] = ['.dose', '.slide', '.number', '.ticks', '.note'].map(find);
let control = null, typing = false, shownTicks = '';

const place = dose => 1000 * Math.log(dose / control.low) / Math.log(control.high / control.low);
const dose = place => control.low * (control.high / control.low) ** (place / 1000);
const short = value => String(+value.toPrecision(3));
const parse = text => text ? JSON.parse(text) : null;

function show() {
  const { low, high } = control, outside = !(control.dose >= low * 0.999999 && control.dose <= high * 1.000001);
  number.setAttribute('aria-invalid', outside);
  if (control.dose !== null && !typing) number.value = short(control.dose);
  if (!outside) slide.value = place(control.dose);
  const seen = Object.keys(control.seen).map(Number).sort((a, b) => a - b);
  const known = seen.find(d => Math.abs(d / control.dose - 1) < 0.005);
  note.textContent = outside ? `Must be a number from ${short(low)} to ${short(high)} µM.`
    : !seen.length ? control.note
    : known ? `${control.seen[String(known)] ?? control.seen[known.toFixed(1)]} training cells had this dose.`
    : control.dose < seen[0] || control.dose > seen.at(-1) ? 'Beyond the doses seen in training: an extrapolation.'
    : 'Between doses seen in training: an interpolation.';
}

function set(value) {
  typing = false;
  control.dose = Number.isFinite(value) ? value : null;
  control.revision = window.mfmRevisions.next();
  show();
  props.value = JSON.stringify(control);
  trigger('input');
}

function tick([d, cells]) {
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = short(+d);
  button.title = `${cells} training cells`;
  button.setAttribute('aria-label', `${short(+d)} µM, seen in ${cells} training cells`);
  button.style.left = `${place(+d) / 10}%`;
  button.addEventListener('click', () => set(+d));
  return button;
}

function load(fresh) {
  if (fresh && fresh.low !== null && fresh.revision < control?.revision) {
    Object.assign(fresh, { dose: control.dose, revision: control.revision });
    props.value = JSON.stringify(fresh);
  }
  control = fresh;
  const none = !control || control.low === null;
  box.classList.toggle('none', none);
  if (none) { note.textContent = 'The untreated control has no dose.'; return; }
  show();
  const range = JSON.stringify([control.low, control.high, control.seen]);
  if (range === shownTicks) return;      // a tick keeps the focus
  shownTicks = range;
  ticks.replaceChildren(...Object.entries(control.seen).map(tick));
}

slide.addEventListener('input', () => {
  set(Math.min(control.high, Math.max(control.low, +short(dose(+slide.value)))));
});
number.addEventListener('input', () => { typing = true; control.revision = window.mfmRevisions.next(); });
number.addEventListener('blur', () => { typing = false; });
number.addEventListener('change', () => {
  set(number.value.trim() === '' ? NaN : Number(number.value.replace(',', '.')));
});
watch('value', () => {
  const fresh = parse(props.value);
  if (JSON.stringify(fresh) !== JSON.stringify(control)) load(fresh);
});
load(parse(props.value));
