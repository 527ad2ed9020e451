// What Gradio gives the viewer on the page, given here; `player` is {run, frames, done}.
const props = {}, watchers = [];
viewer(document.body, props, (name, watcher) => watchers.push(watcher), () => {}, '');
document.querySelector('.viewer').classList.toggle('with-states', 'xt' in player.frames[0]);
const send = message => {
  props.value = JSON.stringify({ run: player.run, ...message });
  watchers.forEach(watcher => watcher());
};
player.frames.forEach(frame => send({ frame: { xt: frame.x1_pred, ...frame } }));
send({ done: player.done });
