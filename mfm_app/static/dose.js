// props.value is JSON from Python: {low, high, seen: {dose: cells}, dose, note}; what Python gets back is the same with another dose.
const find = selector => element.querySelector(selector);
const box = find('.dose'), slide = find('.slide'), number = find('.number'), ticks = find('.ticks'), note = find('.note');
let said = null;

const place = dose => 1000 * Math.log(dose / said.low) / Math.log(said.high / said.low);
const dose = place => said.low * (said.high / said.low) ** (place / 1000);
const short = value => String(+value.toPrecision(3));

function show() {
  const outside = !(said.dose >= said.low * 0.999999 && said.dose <= said.high * 1.000001);
  number.setAttribute('aria-invalid', outside);
  number.value = said.dose === null ? number.value : short(said.dose);
  if (!outside) slide.value = place(said.dose);
  const seen = Object.keys(said.seen).map(Number).sort((a, b) => a - b);
  const known = seen.find(d => Math.abs(d / said.dose - 1) < 0.005);
  note.textContent = outside ? `Must be a number from ${short(said.low)} to ${short(said.high)} µM.`
    : !seen.length ? said.note
    : known ? `${said.seen[String(known)] ?? said.seen[known.toFixed(1)]} training cells had this dose.`
    : said.dose < seen[0] || said.dose > seen.at(-1) ? 'Beyond the doses seen in training: an extrapolation.'
    : 'Between doses seen in training: an interpolation.';
}

function set(value) {
  said.dose = Number.isFinite(value) ? value : null;
  show();
  props.value = JSON.stringify(said);
  trigger('input');
}

function load() {
  said = props.value ? JSON.parse(props.value) : null;
  const none = !said || said.low === null;
  box.classList.toggle('none', none);
  if (none) { note.textContent = 'The untreated control has no dose.'; return; }
  ticks.replaceChildren(...Object.entries(said.seen).map(([d, cells]) => {
    const tick = document.createElement('button');
    tick.type = 'button';
    tick.textContent = short(+d);
    tick.title = `${cells} training cells`;
    tick.setAttribute('aria-label', `${short(+d)} µM, seen in ${cells} training cells`);
    tick.style.left = `${place(+d) / 10}%`;
    tick.addEventListener('click', () => set(+d));
    return tick;
  }));
  show();
}

slide.addEventListener('input', () => set(Math.min(said.high, Math.max(said.low, +short(dose(+slide.value))))));
number.addEventListener('change', () => set(number.value.trim() === '' ? NaN : Number(number.value.replace(',', '.'))));
watch('value', () => { const fresh = props.value && JSON.parse(props.value); if (JSON.stringify(fresh) !== JSON.stringify(said)) load(); });
load();
