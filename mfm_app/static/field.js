// An imported image with a ring round each nucleus; which are chosen is the value that goes back.
const find = selector => element.querySelector(selector);
let image = null, chosen = new Set();      // image: the last message from Python
let region = null, drag = null;            // region: [x0, y0, x1, y1], shares of the picture; drag: the last one drawn

const sorted = () => [...chosen].sort((a, b) => a - b);
const rings = () => element.querySelectorAll('.nuclei button');
const nuclei = n => n === 1 ? '1 nucleus' : `${n} nuclei`;

function keep() { props.value = JSON.stringify({ chosen: sorted() }); }
function send() { keep(); trigger('input'); }
function say(text = '') { find('.said').textContent = text; }

function mark() {
  rings().forEach((ring, i) => ring.setAttribute('aria-pressed', chosen.has(i)));
  find('.choose output').textContent = `${chosen.size} of ${image.nuclei.length} nuclei chosen`;
}

function choose(indices, text) {
  chosen = new Set(indices);
  say(text);
  mark();
  send();
}

function ring([y, x], i) {
  const button = document.createElement('button'), [height, width] = image.nucleus;
  button.type = 'button';
  button.setAttribute('aria-label', `Nucleus ${i + 1}`);
  button.title = `Nucleus ${i + 1}`;
  const place = { left: x, top: y, width, height };
  for (const [side, share] of Object.entries(place)) button.style[side] = `${100 * share}%`;
  button.addEventListener('click', () => {
    show(null);
    if (chosen.has(i)) return choose(sorted().filter(j => j !== i));
    if (chosen.size < image.max) return choose([...chosen, i]);
    say(`${image.max} nuclei are chosen and no more are treated at a time: take one away first.`);
  });
  return button;
}

// A region of interest: a rectangle drawn with the pointer, or moved and sized with the arrow keys.

function inside([x0, y0, x1, y1]) {
  return [...image.nuclei.keys()].filter(i => {
    const [y, x] = image.nuclei[i];
    return x >= x0 && x <= x1 && y >= y0 && y <= y1;
  });
}

function nearestMiddle(indices, [x0, y0, x1, y1]) {
  const { width, height } = find('.frame').getBoundingClientRect();
  const offset = ([y, x]) => [(x - (x0 + x1) / 2) * width, (y - (y0 + y1) / 2) * height];
  const distance = i => Math.hypot(...offset(image.nuclei[i]));
  return [...indices].sort((a, b) => distance(a) - distance(b));
}

function take({ shiftKey, altKey }) {
  const there = inside(region), n = there.length, lie = `${nuclei(n)} ${n === 1 ? 'lies' : 'lie'} in the region`;
  if (!n) return say('No nucleus lies in the region; what was chosen stays.');
  if (altKey) return choose(sorted().filter(i => !there.includes(i)), `${lie} and ${n === 1 ? 'is' : 'are'} left out.`);
  const before = shiftKey ? sorted() : [], fresh = there.filter(i => !before.includes(i));
  const room = image.max - before.length;
  if (fresh.length <= room) return choose([...before, ...fresh], `${lie}.`);
  const taken = nearestMiddle(fresh, region).slice(0, room), added = `${taken.length} nearest its middle were`;
  const result = !before.length ? `the ${added} taken` : `${room ? `the ${added}` : 'none was'} added to the ` +
    `${before.length} chosen before`;
  choose([...before, ...taken], `${lie}; ${image.max} at a time are treated: ${result}.`);
}

const keys = 'arrow keys move it, with Shift they size it; Enter takes the nuclei inside, with Shift adds them, ' +
  'with Alt takes them away; Escape closes it';

function count() { say(`${nuclei(inside(region).length)} in the region`); }

function show(box) {
  region = box;
  const rectangle = find('.region'), there = box ? new Set(inside(box)) : new Set();
  rectangle.hidden = !box;
  rings().forEach((ring, i) => ring.classList.toggle('inside', there.has(i)));
  find('.draw').setAttribute('aria-pressed', !!box);
  find('.frame').classList.toggle('drawing', !!box);
  if (!box) return;
  const place = { left: box[0], top: box[1], width: box[2] - box[0], height: box[3] - box[1] };
  for (const [side, share] of Object.entries(place)) rectangle.style[side] = `${100 * share}%`;
  rectangle.setAttribute('aria-label', `Region with ${nuclei(there.size)}: ${keys}`);
}

function at(event) {
  const box = find('.frame').getBoundingClientRect();
  return [clip((event.clientX - box.left) / box.width), clip((event.clientY - box.top) / box.height)];
}

function down(event) {
  const scrolls = event.pointerType === 'touch' && !region;      // a finger draws once Region was pressed
  const starts = !event.button && !scrolls && image?.nuclei.length > 1;
  drag = starts ? { from: at(event), x: event.clientX, y: event.clientY, held: true } : null;
}

function move(event) {
  if (!drag?.held) return;
  drag.moved ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > 5;
  if (!drag.moved) return;
  find('.frame').setPointerCapture(event.pointerId);
  const [[ax, ay], [bx, by]] = [drag.from, at(event)];
  show([Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)]);
  count();
}

function up(event) {
  if (drag?.held && drag.moved) take(event);
  if (drag) drag.held = false;
}

function click(event) {      // that ends a drag is none on a ring; a key's has no detail
  if (drag?.moved && event.detail) event.stopPropagation();
}

const clip = v => Math.min(Math.max(v, 0), 1);
const steps = { ArrowLeft: [-.02, 0], ArrowRight: [.02, 0], ArrowUp: [0, -.02], ArrowDown: [0, .02] };

function step(sizes, dx, dy) {
  const [x0, y0, x1, y1] = region, sx = Math.min(Math.max(dx, -x0), 1 - x1), sy = Math.min(Math.max(dy, -y0), 1 - y1);
  if (sizes) show([x0, y0, clip(Math.max(x1 + dx, x0 + .02)), clip(Math.max(y1 + dy, y0 + .02))]);
  else show([x0 + sx, y0 + sy, x1 + sx, y1 + sy]);
  count();
}

function key(event) {
  if (event.key === 'Escape') { show(null); find('.draw').focus(); }
  else if (event.key === 'Enter') take(event);
  else if (steps[event.key]) step(event.shiftKey, ...steps[event.key]);
  else return;
  event.preventDefault();
}

const cell = (kind, text) => Object.assign(document.createElement(kind), { textContent: text });

function intensityRow(row) {
  const line = document.createElement('tr');
  line.replaceChildren(...row.map(text => cell('td', text)));
  return line;
}

function load(message) {
  const sameNuclei = ['picture', 'nuclei', 'nucleus'].every(key => `${image?.[key]}` === `${message?.[key]}`);
  const same = image && message && sameNuclei;      // then what is chosen here is newer
  if (message && !same) chosen = new Set(message.chosen);
  image = message;
  find('.hint').hidden = !!image;
  find('.image').hidden = !image;
  if (!image) return;
  find('.whole figcaption').textContent = image.title;
  find('.whole img').src = image.picture;
  const several = image.nuclei.length > 1;
  if (!same) {
    find('.nuclei').replaceChildren(...(several ? image.nuclei.map(ring) : []));      // a ring keeps the focus
    show(null);
    say();
  }
  find('.choose').hidden = find('.how').hidden = !several;
  find('.before').src = image.before;
  find('.after').src = image.after;
  const intensities = image.matched ? 'intensities matched' : 'intensities not matched';
  find('.after-title').textContent = `As the model takes them, ${intensities}`;
  find('.intensities tbody').replaceChildren(...image.intensities.map(intensityRow));
  find('.notes').replaceChildren(...image.notes.map(note => cell('li', note)));
  mark();
  if (`${sorted()}` === `${image.chosen}`) keep();
  else send();      // it was chosen while the answer was on its way
}

find('.all').addEventListener('click', () => {
  const n = image.nuclei.length;
  show(null);
  choose(image.nuclei.slice(0, image.max).keys(),
    n > image.max ? `Of ${n} nuclei, ${image.max} at a time are treated: the first ${image.max} were taken.` : '');
});
find('.none').addEventListener('click', () => { show(null); choose([]); });
find('.draw').addEventListener('click', () => {
  if (region) return show(null);
  show([.25, .25, .75, .75]);
  count();
  find('.region').focus();
});
find('.region').addEventListener('keydown', key);
const pointer = { pointerdown: down, pointermove: move, pointerup: up, pointercancel: () => { drag = null; } };
for (const [name, handler] of Object.entries(pointer)) find('.frame').addEventListener(name, handler);
find('.frame').addEventListener('click', click, true);
watch('value', () => {
  const message = props.value ? JSON.parse(props.value) : null;
  if (!message || message.picture) load(message);
});
load(null);
