// What Gradio gives the viewer on the page, given here; `told` is {run, frames, done}.
const props = {}, watchers = [];
viewer(document.body, props, (name, tell) => watchers.push(tell), () => {}, '');
document.querySelector('.viewer').classList.toggle('with-states', 'state' in told.frames[0]);
const tell = news => { props.value = JSON.stringify({ run: told.run, ...news }); watchers.forEach(watcher => watcher()); };
told.frames.forEach(frame => tell({ frame: { state: frame.guess, ...frame } }));
tell({ done: told.done });
