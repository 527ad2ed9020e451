// An imported image with a ring round each nucleus; which are chosen is the value that goes back.
const find = selector => element.querySelector(selector);
let image = null, chosen = new Set();      // image: the last message from Python

const sorted = () => [...chosen].sort((a, b) => a - b);

function keep() { props.value = JSON.stringify({ chosen: sorted() }); }
function send() { keep(); trigger('input'); }

function mark() {
  const rings = element.querySelectorAll('.nuclei button');
  rings.forEach((ring, i) => ring.setAttribute('aria-pressed', chosen.has(i)));
  find('.choose output').textContent = `${chosen.size} of ${image.nuclei.length} nuclei chosen`;
}

function ring([y, x], i) {
  const button = document.createElement('button'), [height, width] = image.nucleus;
  button.type = 'button';
  button.setAttribute('aria-label', `Nucleus ${i + 1}`);
  button.title = `Nucleus ${i + 1}`;
  const place = { left: x, top: y, width, height };
  for (const [side, share] of Object.entries(place)) button.style[side] = `${100 * share}%`;
  button.addEventListener('click', () => {
    if (chosen.has(i)) chosen.delete(i); else if (chosen.size < image.max) chosen.add(i);
    mark();
    send();
  });
  return button;
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
  if (!same) find('.nuclei').replaceChildren(...(several ? image.nuclei.map(ring) : []));      // a ring keeps the focus
  find('.choose').hidden = !several;
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
  chosen = new Set(image.nuclei.slice(0, image.max).keys());
  mark();
  send();
});
find('.none').addEventListener('click', () => { chosen.clear(); mark(); send(); });
watch('value', () => {
  const message = props.value ? JSON.parse(props.value) : null;
  if (!message || message.picture) load(message);
});
load(null);
